"""Options of `stagetrace up` and `stagetrace page`: addresses, access, limits. Checked before anything is opened."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.errors import StagetraceError
from stagetrace.system.access import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.policy.policy import Policy

MIB: Final = 1 << 20
_SHORT: Final = 16  # characters of a token
_AGES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SIZES: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": MIB, "GIB": 1 << 30}


class BackendError(StagetraceError):
    """The back end cannot start; the message names the remedy."""


@dataclass(frozen=True)
class Ports:
    """One number for each socket. 0 takes a free one."""

    grpc: int = 4317
    http: int = 4318
    query_grpc: int = 16685
    query_http: int = 16686


@dataclass(frozen=True)
class Limits:
    """Bytes of one request after decompression, and of all requests that are held at one time."""

    request: int = 64 * MIB
    in_flight: int = 256 * MIB


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where a server listens, and what it asks of its clients. With `token` None no client needs one."""

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    insecure: bool = False  # takes the token without TLS beyond loopback
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: tuple[str, ...] = ()  # names in `Host` beside local ones

    def at(self, port: int) -> str:
        """Return the address of a port, for clients."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def url(self, port: int) -> str:
        """Return the URL of a port that serves HTTP."""
        return f"{'http' if self.tls_cert is None else 'https'}://{self.at(port)}"


@dataclass(frozen=True)
class Alerting:
    """Which objectives are watched, and where their alerts are posted; empty: nowhere, or without a secret.

    `renewed` returns the policy in force: the same object as long as it has not changed. One thread calls it.
    """

    policy: Policy  # at the start
    renewed: Callable[[], Policy]
    webhook: str = field(default="", repr=False)
    webhook_token: str = field(default="", repr=False)
    webhook_secret: str = field(default="", repr=False)
    alertmanager: str = field(default="", repr=False)
    alertmanager_token: str = field(default="", repr=False)
    notify: tuple[str, ...] = field(default=(), repr=False)  # URLs of Apprise


@dataclass(frozen=True)
class Options(Listening):
    """All options of one back end."""

    data: Path
    ports: Ports = Ports()
    retention_s: float | None = None
    retention_bytes: int | None = None
    archive: str | None = None  # a URL
    limits: Limits = Limits()
    alerting: Alerting | None = None

    def store(self, ports: Ports) -> str:
        """Return the URL by which the commands read it from another machine."""
        return f"{'jaeger' if self.tls_cert is None else 'jaegers'}://{self.at(ports.query_grpc)}"


def check(options: Listening) -> None:
    """Raise BackendError for options with which no server must be started. Opens nothing."""
    if not is_loopback(options.host) and not options.token:
        raise BackendError(
            f"--host {options.host} can be reached from other machines, and there is no token\n"
            "give --token-file FILE (or STAGETRACE_TOKEN), which clients send as `authorization: Bearer SECRET`, "
            "or stay on 127.0.0.1"
        )
    if options.token is not None and not re.fullmatch(r"[\x21-\x7e]+", options.token):
        raise BackendError(
            "the token is empty or has characters that a header cannot carry\nuse printable ASCII without spaces"
        )
    if (options.tls_cert is None) != (options.tls_key is None):
        raise BackendError("TLS needs both files\ngive --tls-cert CERT.pem and --tls-key KEY.pem, or neither")
    if not is_loopback(options.host) and options.tls_cert is None and not options.insecure:
        raise BackendError(
            f"--host {options.host} can be reached from other machines, and without TLS the network can read token and "
            "spans\ngive --tls-cert CERT.pem and --tls-key KEY.pem,\n"
            "or --insecure where a proxy adds TLS, or the network is yours alone"
        )


def check_back_end(options: Options) -> None:
    """Raise BackendError for options with which no back end must be started. Opens nothing."""
    check(options)
    asked = [port for port in vars(options.ports).values() if port]
    if len(set(asked)) < len(asked):
        raise BackendError(f"two of the four ports are the same: {', '.join(map(str, asked))}\ngive each its own")
    if options.limits.in_flight < options.limits.request:
        raise BackendError(
            "--max-in-flight is below --max-request: the largest request allowed could never be taken\nraise one"
        )


def risks(options: Listening) -> list[str]:
    """Return what is allowed and yet weak, a line each."""
    if is_loopback(options.host) or options.token is None:
        return []
    found = []
    if options.tls_cert is None:
        found.append(f"--insecure: token and spans are readable on the network that reaches {options.host}")
    if len(options.token) < _SHORT:
        found.append(
            f"the token has {len(options.token)} characters and can be guessed: `openssl rand -hex 32` makes one"
        )
    return found


def host_names(text: str) -> tuple[str, ...]:
    """Return names or addresses, separated by commas, in lower case. Raise ValueError."""
    names = tuple(name.strip().rstrip(".").lower() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"[a-z0-9_.-]+|[0-9a-f:]+", name):
            raise ValueError(f"{name!r} is not a host name or address; give it without a scheme and a port")
    return names


def seconds(text: str) -> float:
    """Return an age such as `36h` or `7d` in seconds. Raise ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip(), re.ASCII)
    if not match or not float(match[1]):
        raise ValueError(f"{text!r} is not an age such as 36h or 7d")
    return float(match[1]) * _AGES[match[2]]


def size(text: str) -> int:
    """Return a size such as `500MB` or `64MiB` in bytes. Raise ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", text.strip(), re.IGNORECASE | re.ASCII)
    unit = match[2].upper() if match else ""
    if not match or unit not in _SIZES or float(match[1]) * _SIZES[unit] < 1:
        raise ValueError(f"{text!r} is not a size such as 500MB or 64MiB")
    return int(float(match[1]) * _SIZES[unit])


# --- The token of `stagetrace up` in a file: a flag shows in `ps`, and a variable in the environment of each child.

_LONGEST: Final = 4096  # bytes; more than any header may have
_OTHERS: Final = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


def read(file: Path) -> str:
    """Return the token in `file`, without the line end behind it. Raise BackendError.

    A file that others can read is logged, not refused: Kubernetes and Docker mount secrets so.
    """
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(_LONGEST + 1)
    except OSError as error:
        raise BackendError(
            f"cannot read the token in {file}: {error.strerror}\nname a file that holds the token and nothing else"
        ) from None
    token = content.removesuffix(b"\n").removesuffix(b"\r").decode("latin-1")
    if not token or len(content) > _LONGEST:
        wrong = "it is empty" if not token else f"it has more than {_LONGEST} bytes"
        raise BackendError(
            f"cannot use the token in {file}: {wrong}\nname a file that holds the token and nothing else"
        )
    if stat.S_ISREG(mode) and mode & _OTHERS:
        log.warning(f"other users may read or change the token in {file} (mode {stat.S_IMODE(mode):04o}): chmod 600")
    return token
