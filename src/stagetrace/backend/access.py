"""Access to the HTTP ports: the token, and what a browser sends on behalf of a web page, which is refused.

A page of any site can have its visitor's browser send requests to this machine. The browser names it in `Origin`
or `Sec-Fetch-Site`, except where the page's own name resolves to this machine (DNS rebinding): then `Host` has it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stagetrace.backend.refusal import FORBIDDEN, UNAUTHENTICATED, Refused
from stagetrace.hosts import is_loopback

if TYPE_CHECKING:
    from stagetrace.backend.options import Listening

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
        if not authorized(next((value for name, value in headers if name == b"authorization"), None), self.token):
            raise Refused(UNAUTHENTICATED, "a token is needed: send the header `authorization: Bearer TOKEN`")

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


def authorized(given: str | bytes | None, token: str | None) -> bool:
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
