"""Logging in by a browser, which sends no `authorization`: a form takes the token once, then a cookie has the session.

The cookie opens pages and their parts, by GET; the API, /metrics and receiving spans need the token itself.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import anyio
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stagetrace.backend.counters import ThrottledLog
from stagetrace.backend.ports import is_authorized
from stagetrace.backend.refusal import ABANDONED, FORBIDDEN, MALFORMED, SLOW, TOO_LARGE, Refused
from stagetrace.page.templates import HEADERS, document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.options import Listening

LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
SESSION_S: Final = 8 * 3600
_SESSIONS: Final = 256
_TRIES: Final = 10  # with a wrong token, of one peer, within the next
_TRIES_S: Final = 60
_PEERS: Final = 1024
_IPV6_SITE: Final = 8  # bytes: a client with one address of IPv6 normally has all with the same first 64 bits
_BODY: Final = 64 << 10  # bytes: a path may be as long as headers are
_BODY_S: Final = 10
_FIELDS: Final = 8
_OWN_PATH: Final = re.compile(r"/(?![/\\])[\x21-\x7e]*")  # of this site: browsers take `//x` and `/\x` for another host
_OTHER_SITES: Final = ("cross-site", "same-site")
_WRONG: Final = "This is not the token."
_log: Final = ThrottledLog()


class Sessions:
    """The sessions of this process. Held by their hashes: finding one takes no time that depends on a value."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()  # the oldest first

    def open(self) -> str:
        """Return the value of a new session; beyond the limit the oldest ends."""
        value = secrets.token_urlsafe(32)
        self._until[_hash(value)] = self._clock() + SESSION_S
        if len(self._until) > _SESSIONS:
            self._until.popitem(last=False)
        return value

    def holds(self, value: str) -> bool:
        """Return whether this is the value of a session that has not ended."""
        return self._until.get(_hash(value), 0.0) > self._clock()

    def close(self, value: str) -> None:
        """End a session, if it is one."""
        self._until.pop(_hash(value), None)


class Attempts:
    """Failed logins of each peer; after some the peer has to wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()  # by peer, when

    def wait_s(self, peer: str) -> float:
        """Return for how long a peer may not try; 0 where it may."""
        times = self._failed.get(peer)
        return max(0.0, times[0] + _TRIES_S - self._clock()) if times and len(times) == _TRIES else 0.0

    def fail(self, peer: str) -> None:
        """Note a failure."""
        self._failed.setdefault(peer, deque(maxlen=_TRIES)).append(self._clock())
        self._failed.move_to_end(peer)
        if len(self._failed) > _PEERS:
            self._failed.popitem(last=False)


class Login:
    """The routes for it, and what a browser without a session is shown."""

    def __init__(self, options: Listening, port: int, counters: Counters) -> None:
        """Take the token of `options`. Browsers share cookies between ports, so that `port` is in the cookie's name."""
        self._token = options.token
        self._secure = options.tls_cert is not None
        self._cookie = f"{'__Host-' if self._secure else ''}stagetrace-{port}"
        self._counters = counters
        self._sessions = Sessions()
        self._attempts = Attempts()

    @property
    def is_needed(self) -> bool:
        """Return whether there is a token."""
        return self._token is not None

    @property
    def routes(self) -> list[BaseRoute]:
        """Return the routes; none where there is no token."""
        if not self.is_needed:
            return []
        return [
            Route(LOGIN, self._show, methods=["GET"]),
            Route(LOGIN, self._log_in, methods=["POST"]),
            Route(LOGOUT, self._log_out, methods=["POST"]),
        ]

    def has_session(self, request: Request) -> bool:
        """Return whether the request has the cookie of a session."""
        return self._sessions.holds(request.cookies.get(self._cookie, ""))

    def form(self, request: Request) -> Response:
        """Return the form in place of the page that is asked for.

        Browsers do not send the cookie where a page of another site has the link (SameSite=Strict). The form then asks
        once more by itself, as a page of this site.
        """
        query = f"?{request.url.query}" if request.url.query else ""
        wanted = own_path(f"{request.scope.get('raw_path', b'').decode('latin-1')}{query}")
        is_linked = request.headers.get("sec-fetch-site") in _OTHER_SITES
        return document("login.html", 401, wanted=wanted, message=None, again=is_linked)

    async def _show(self, request: Request) -> Response:
        wanted = own_path(request.query_params.get("next", "/"))
        if self.has_session(request):
            return RedirectResponse(wanted, 303)
        return document("login.html", 200, wanted=wanted, message=None, again=False)

    async def _log_in(self, request: Request) -> Response:
        wanted = "/"
        try:
            check_origin(request.headers)
            fields = await read_form(request)
            wanted = own_path(fields.get("next", "/"))
        except Refused as refused:
            status = refused.kind.status
            return document("login.html", status, wanted=wanted, message=refused.message, again=False)
        peer = peer_of(request.client)
        wait_s = self._attempts.wait_s(peer)
        if wait_s:
            self._counters.add("logins", "throttled")
            message = f"Too many wrong tokens came from your address. Wait for {wait_s:.0f} s."
            response = document("login.html", 429, wanted=wanted, message=message, again=False)
            response.headers["retry-after"] = f"{wait_s:.0f}"
            return response
        if not is_authorized(f"Bearer {fields.get('token', '')}".encode(), self._token):
            self._attempts.fail(peer)
            self._counters.add("logins", "refused")
            _log.warning("login", f"a login with a wrong token was refused; it came from {peer}")
            return document("login.html", 401, wanted=wanted, message=_WRONG, again=False)
        self._counters.add("logins", "accepted")
        return self._redirected(wanted, self._sessions.open(), SESSION_S)

    async def _log_out(self, request: Request) -> Response:
        self._sessions.close(request.cookies.get(self._cookie, ""))
        return self._redirected(LOGIN, "", 0)

    def _redirected(self, path: str, session: str, age_s: int) -> Response:
        response = RedirectResponse(path, 303, headers=HEADERS)
        response.set_cookie(
            self._cookie, session, age_s, path="/", secure=self._secure, httponly=True, samesite="strict"
        )
        return response


def _hash(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()


def own_path(path: str) -> str:
    """Return a path of this site as it is, and the first page for anything else."""
    return path if _OWN_PATH.fullmatch(path) and not path.startswith((LOGIN, LOGOUT)) else "/"


def check_origin(headers: Mapping[str, str]) -> None:
    """Raise Refused unless the browser states that a page of ours sent the form; which site, `Access` has checked."""
    if "origin" not in headers and headers.get("sec-fetch-site") != "same-origin":
        raise Refused(FORBIDDEN, "this form was sent by no page of this site\nuse the form of the page")


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form. Raise Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused(MALFORMED, "this is no form as a browser sends it\nuse the form of the page")
    body = b""
    with anyio.move_on_after(_BODY_S) as scope:
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise Refused(ABANDONED, "the client disconnected before the end of the form")
            body += message.get("body", b"")
            if len(body) > _BODY:
                raise Refused(TOO_LARGE, f"the form has more than {_BODY:,} bytes\nuse the form of the page")
            more = message.get("more_body", False)
    if scope.cancelled_caught:
        raise Refused(SLOW, f"the form was not received within {_BODY_S} s\nsend it again")
    try:
        return {name: values[-1] for name, values in parse_qs(body.decode(), max_num_fields=_FIELDS).items()}
    except ValueError:
        raise Refused(MALFORMED, "this is no form as a browser sends it\nuse the form of the page") from None


def peer_of(address: object) -> str:
    """Return whose tries are counted together: those of an address of IPv4, or of the first 64 bits of one of IPv6."""
    host = str(address[0]) if isinstance(address, tuple) else ""
    if ":" not in host:
        return host
    found = ipaddress.IPv6Address(host.partition("%")[0])
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return found.packed[:_IPV6_SITE].hex(":", 2)
