"""The contract of a protocol of the load generator, and the target of a load."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from stagetrace.errors import StagetraceError
from stagetrace.system.access import is_loopback
from stagetrace.system.packages import requirement

# --- The contract of a protocol of the load generator: one class that sends a request and reports its end.


class LoadError(StagetraceError):
    """No load can be sent as asked; the message names the remedy."""


def check_installed(verb: str, *names: str) -> None:
    """Raise LoadError where a library that the load of a verb needs is missing."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise LoadError(f"{verb} needs {', '.join(missing)}\npip install {requirement('bench')}")


class Exchange(Protocol):
    """One request on its way."""

    sent_s: float | None
    """When it was handed to the network, or a connection for it begun, by the event loop's clock; None: not yet."""

    def cancel(self) -> None:
        """Give it up; its `done` is not called any more."""
        ...


class Sender(Protocol):
    """Sends requests over one protocol to one target, as many at a time as there are."""

    async def open(self) -> None:
        """Connect. Raise LoadError where no server listens."""
        ...

    def send(self, number: int, traceparent: str, done: Callable[[str | None], None]) -> Exchange:
        """Start a request, the `number`th, and return at once.

        `done` is called once, later: with None, or with why it failed in a few words that many requests may share.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


# --- The target of a load: its URL, and the addresses behind its name, which must be this machine's own.

_PORTS: Final = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
_CONNECTS_WITHIN_S: Final = 5.0
_FORMS: Final = "http://HOST:PORT/PATH, https://..., grpc://HOST:PORT/pkg.Service/Method, grpcs://..."


class Target(NamedTuple):
    """A URL in its parts. `path` has the query; of gRPC it is `/pkg.Service/Method`."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_grpc(self) -> bool:
        """Return whether it is spoken to by gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def is_tls(self) -> bool:
        """Return whether it is spoken to over TLS."""
        return self.scheme.endswith("s")

    @property
    def authority(self) -> str:
        """Return the value of the header `host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """Return a URL in its parts. Raise LoadError for one that nothing can be sent to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        _ = (host or "").encode("idna")
    except ValueError as error:
        raise _bad(url, str(error)) from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise _bad(url, "it has no scheme" if "://" not in url else f"nothing is sent by {scheme}")
    if not host:
        raise _bad(url, "the host is missing")
    if parts.username is not None:
        raise _bad(url, "a name and a password in it would be shown; give them with -H 'authorization: ...'")
    path = quoted(parts.path or "/", parts.query)
    target = Target(scheme, host, port if port is not None else _PORTS[scheme], path)
    if target.is_grpc and (path.count("/") != 2 or not all(path[1:].split("/")) or parts.query):  # noqa: PLR2004
        raise _bad(url, "of gRPC it must name service and method: grpc://HOST:PORT/pkg.Service/Method")
    return target


def quoted(path: str, query: str = "") -> str:
    """Return path and query as a request line has them: what it cannot have is written by its bytes."""
    tail = f"?{quote(query, safe='/%:@!$&()*+,;=~-._?')}" if query else ""
    return quote(path, safe="/%:@!$&'()*+,;=~-._") + tail


def addresses(target: Target, *, own: bool) -> list[str]:
    """Return the addresses of a target. Raise LoadError where it has none, or one beyond this machine unless `own`."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LoadError(f"cannot find {target.host}: {getattr(error, 'strerror', None) or error}") from None
    known = list(dict.fromkeys(str(address[0]) for *_, address in found))
    beyond = [one for one in known if not is_loopback(one)]
    if beyond and not own:
        raise LoadError(
            f"{target.host} ({beyond[0]}) is beyond this machine, and load on a service of others is an attack\n"
            "if it is yours, and may be loaded, add --i-own-this"
        )
    return known


def answering(target: Target, addresses: Sequence[str]) -> str:
    """Return the first address at which somebody listens: of `localhost` that may be either of two."""
    why = ""
    for address in addresses:
        try:
            socket.create_connection((address, target.port), _CONNECTS_WITHIN_S).close()
        except OSError as error:  # noqa: PERF203 -- there are two at most
            why = error.strerror or str(error)
        else:
            return address
    raise LoadError(f"cannot connect to {target.host} port {target.port}: {why}\nstart the service, or check the URL")


def _bad(url: str, wrong: str) -> LoadError:
    shown = url if "@" not in url else "the URL"
    return LoadError(f"cannot send requests to {shown!r}: {wrong}\nsupported: {_FORMS}")


# --- The bodies of requests, as they are given.

MOST_BYTES: Final = 256 * 1024 * 1024


def body_of(text: str) -> bytes:
    """Return the body of a text, or of the file behind `@`."""
    return read_body(text[1:]) if text.startswith("@") else text.encode("utf-8", "surrogateescape")


def read_body(path: str) -> bytes:
    """Return what a file holds. Raise LoadError where it cannot be read, or is too large."""
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise LoadError(f"{path} is larger than 256 MiB\ngive fewer or smaller bodies")
        return Path(path).read_bytes()
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
