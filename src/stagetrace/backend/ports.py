"""What every port has: its socket and TLS, file descriptors for its connections, the token, refused web pages."""

from __future__ import annotations

import errno
import hmac
import re
import resource
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from stagetrace.backend.options import BackendError, Listening
from stagetrace.backend.refusal import FORBIDDEN, UNAUTHENTICATED, Refused
from stagetrace.system.access import is_loopback

# --- How many connections a port may hold: each costs a file descriptor, and the store needs some.

_PORTS: Final = 4
_OTHERS: Final = 512  # for the files of the store, for DuckDB and for what libraries open
_LEAST: Final = 16


class Connections(NamedTuple):
    """How many connections each port of a kind may hold."""

    http: int
    grpc: int


# gRPC cannot close a silent connection for a new one, only refuse the new one: there have to be many.
_WANTED: Final = Connections(http=1024, grpc=4096)


def connections_of_ports() -> Connections:
    """Return how many connections each of the four ports may hold.

    Raises the soft limit of this process (`ulimit -n`) as far as that needs and the hard limit allows.
    """
    wanted = 2 * sum(_WANTED) + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = wanted if hard == unlimited else min(wanted, hard)
    if soft not in (unlimited, allowed) and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft == unlimited or soft >= wanted:
        return _WANTED
    # With few descriptors the store keeps half of them.
    left = soft - min(_OTHERS, soft // 2)
    http = max(min(left // _PORTS, _WANTED.http), _LEAST)
    return Connections(http, max(left // 2 - http, _LEAST))


# --- Listening sockets and TLS; a taken or forbidden port, or unusable files, are reported before any server starts.

_BACKLOG: Final = 4096  # beyond it a client connects a second later; the kernel may have a lower limit


def check_tls(options: Listening) -> None:
    """Raise BackendError where the files for TLS cannot be used."""
    if options.tls_cert is None or options.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise BackendError(
            f"cannot use {options.tls_cert} with {options.tls_key}: {error}\n"
            "both must be readable PEM files, the key without a passphrase and of this certificate"
        ) from None


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Return a socket that listens on `port`, or on a free one for 0. Raise BackendError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise BackendError(f"--host {host}: there is no such address here ({error})\nuse 127.0.0.1") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise port_error(host, port, flag, error) from None
    found.setblocking(False)  # noqa: FBT003 -- takes no name
    return found


def port_error(host: str, port: int, flag: str, error: OSError) -> BackendError:
    """Return the error for a port that cannot be opened, with what fixes it."""
    if error.errno == errno.EADDRINUSE:
        wrong = "another process listens there"
    elif error.errno == errno.EACCES:
        wrong = "this user may not open it"
    else:
        return BackendError(f"cannot listen on {host}, port {port}: {error.strerror}\ngive another --host")
    return BackendError(
        f"cannot listen on {host}, port {port}: {wrong}\nstop it, or give {flag} PORT (0 takes a free one)"
    )


# --- Access to the HTTP ports: the token, and what a browser sends on behalf of a web page, which is refused.
#
# A page of any site can have its visitor's browser send requests to this machine. The browser names it in `Origin` or
# `Sec-Fetch-Site`, except where the page's own name resolves to this machine (DNS rebinding): then `Host` has it.

_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(:\d*)?")  # of `Host`, in lower case
_SHOWN: Final = 80  # characters of a header in a message


@dataclass(frozen=True)
class Access:
    """What a request needs: the token, if there is one; a local `Host` or one of `names`, unless these are None."""

    token: str | None = None
    names: frozenset[str] | None = frozenset()

    @classmethod
    def of(cls, options: Listening) -> Access:
        """Return the access that these options grant.

        Beyond loopback any name may be right. There the token protects, which no foreign page has.
        """
        is_any = not is_loopback(options.host) and not options.allowed_hosts
        return cls(options.token, None if is_any else frozenset(options.allowed_hosts))

    def check(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raise Refused for the headers of a request that must not be served."""
        self.check_site(method, headers)
        self.check_token(headers)

    def check_site(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise Refused for a request that a web page of another site has a browser send."""
        given: dict[str, list[str]] = {}
        for name, value in headers:
            given.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        hosts = [host.lower() for host in given.get("host", [])]  # not sent by HTTP/1.0; browsers send it
        for host in hosts:
            self._check_host(host)
        for origin in given.get("origin", []):
            if not self._is_own(origin.lower().partition("://")[2], hosts):
                raise Refused(FORBIDDEN, _foreign(f"its Origin is {origin[:_SHOWN]!r}"))
        for site in given.get("sec-fetch-site", []):
            if site not in ("same-origin", "none") and not _is_followed_link(method, given):
                raise Refused(FORBIDDEN, _foreign(f"its Sec-Fetch-Site is {site[:_SHOWN]!r}"))

    def check_token(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise Refused for a request without the token, if there is one."""
        if not is_authorized(next((value for name, value in headers if name == b"authorization"), None), self.token):
            raise Refused(
                UNAUTHENTICATED,
                "no token was sent, and one is needed in the header `authorization`, after the word Bearer",
            )

    def _check_host(self, host: str) -> None:
        name = _name(host)
        if self.names is None or name in self.names or is_loopback(name) or name.endswith(".localhost"):
            return
        raise Refused(
            FORBIDDEN,
            f"the Host header is {host[:_SHOWN]!r}, and this port serves local names alone, against DNS rebinding; "
            "use localhost, or start it with --allow-host NAME if it is reached by that name",
        )

    def _is_own(self, authority: str, hosts: list[str]) -> bool:
        """Return whether an origin is this port, or an allowed name: a proxy may change `Host`, never `Origin`."""
        return bool(authority) and (authority in hosts or _name(authority) in (self.names or ()))


def _name(authority: str) -> str:
    """Return the host of `HOST[:PORT]`, in lower case; empty for what is none."""
    match = _AUTHORITY.fullmatch(authority)
    return match[1].strip("[]").rstrip(".") if match else ""


def is_authorized(given: str | bytes | None, token: str | None) -> bool:
    """Return whether an `authorization` header carries the token; always, where none is required.

    In constant time, so that the duration reveals nothing of the token.
    """
    if token is None:
        return True
    raw = given.encode("latin-1", "replace") if isinstance(given, str) else given or b""
    scheme, _, credential = raw.partition(b" ")
    return hmac.compare_digest(credential.strip(), token.encode()) and scheme.lower() == b"bearer"


def _is_followed_link(method: str, given: dict[str, list[str]]) -> bool:
    """Return whether the response replaces the page: the page that holds the link cannot read it."""
    return (
        method == "GET" and given.get("sec-fetch-mode") == ["navigate"] and given.get("sec-fetch-dest") == ["document"]
    )


def _foreign(why: str) -> str:
    return f"requests by web pages of other sites are refused ({why}); send it from a program, or through a Collector"
