"""A connection of the standard library to one OTLP receiver over HTTP; the environment says how, as to `requests`.

Proxies, `.netrc`, a user in the URL and the authorities of TLS mean what they mean to the official exporter, which
sends by `requests`; docs/decisions/047 has what differs.
"""

from __future__ import annotations

import os
from base64 import b64encode
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from stagetrace.otlp.export.response import http_outcome
from stagetrace.settings import CURL_CA_BUNDLE, NETRC, REQUESTS_CA_BUNDLE, otlp
from stagetrace.text import redacted

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from http.client import HTTPConnection
    from urllib.parse import SplitResult

    from stagetrace.otlp.export.response import Outcome

_HTTPS: Final = 443
_PROXY: Final = 80
_SAFE: Final = "!$%&'()*+,/:;=?@~"  # in a path and a query; what else they hold is percent-encoded


class Connection:
    """A connection that is kept; files of certificates are read each time that it is opened."""

    def __init__(self, url: str, signal: str) -> None:
        from http import client

        to = _address(url)
        self._target = to.target
        self._headers = {"accept": "*/*", "connection": "keep-alive"}
        self._authorization = {"authorization": found} if (found := _authorization(urlsplit(url))) else {}
        self._error = client.HTTPException
        self._signal = signal
        self._connection: HTTPConnection | None = None
        proxy = _proxy(to)
        asked = {"proxy-authorization": proxy.authorization} if proxy and proxy.authorization else {}
        host, port = (proxy.host, proxy.port) if proxy else (to.host, to.port)
        self._make: Callable[[], HTTPConnection]
        if to.is_tls:
            import ssl

            _certifi()  # imported here, not with the first batch: under gevent, our threads must not import anything
            self._ssl = ssl

            def make() -> HTTPConnection:
                made = client.HTTPSConnection(host, port, context=self._context())
                if proxy is not None:
                    made.set_tunnel(to.host, to.port or _HTTPS, asked)
                return made

            self._make = make
        else:
            self._make = lambda: client.HTTPConnection(host, port)
            if proxy is not None:
                self._target = f"http://{to.name}{to.target}"
                self._headers |= asked

    def _context(self) -> ssl.SSLContext:
        named = otlp("CERTIFICATE", self._signal) or REQUESTS_CA_BUNDLE.read() or CURL_CA_BUNDLE.read()
        authority = named or _certifi()
        if authority and not os.path.exists(authority):  # noqa: PTH110 -- the error of ssl does not name it
            raise FileNotFoundError(f"there is no {authority}, with which to check the receiver's certificate")
        if authority and os.path.isdir(authority):  # noqa: PTH112 -- as requests takes one
            made = self._ssl.create_default_context(capath=authority)
        else:
            made = self._ssl.create_default_context(cafile=authority)
        key, certificate = otlp("CLIENT_KEY", self._signal), otlp("CLIENT_CERTIFICATE", self._signal)
        if certificate:
            made.load_cert_chain(certificate, key or None)
        return made

    def post(self, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Outcome:
        """Post once; raise what has kept it from a response."""
        try:
            if self._connection is None:
                self._connection = self._make()
            connection = self._connection
            connection.timeout = timeout_s
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            connection.request("POST", self._target, body, {**self._headers, **headers, **self._authorization})
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            self.close()
            raise
        return http_outcome(
            response.status, response.reason, {name.lower(): value for name, value in response.getheaders()}, content
        )

    def is_lost(self, error: Exception) -> bool:
        """Return whether the connection failed, and another one may not."""
        return isinstance(error, (OSError, self._error)) and not isinstance(error, TimeoutError)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _certifi() -> str | None:
    """Return the authorities of certifi, which requests uses, as an image may have no other; None without it."""
    try:
        from certifi import where
    except ImportError:
        return None
    return where()


# --- The URL of the receiver.


class _Address(NamedTuple):
    """Where to connect, and what to ask for."""

    is_tls: bool
    host: str
    port: int | None
    name: str  # host and port, as in the URL
    target: str


def _address(url: str) -> _Address:
    """Return the parts of a URL, in ASCII; raise ValueError where it is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError(f"{redacted(url)} cannot be used: it has to be http://HOST:PORT or https://HOST:PORT")
    name = f"[{host}]" if ":" in host else host
    query = f"?{parts.query}" if parts.query else ""
    target = quote((parts.path or "/") + query, safe=_SAFE)
    return _Address(parts.scheme == "https", host, port, name if port is None else f"{name}:{port}", target)


def _authorization(parts: SplitResult) -> str | None:
    """Return what `.netrc` or the URL says of the user, which wins over a header; None without user and password."""
    found = _of_netrc(parts.hostname or "")
    if found is None and parts.username is not None and parts.password is not None:
        found = unquote(parts.username), unquote(parts.password)
    return _basic(*found) if found and any(found) else None


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode('latin-1')).decode()}"


def _of_netrc(host: str) -> tuple[str, str] | None:
    named = NETRC.raw()
    paths = [os.path.expanduser(path) for path in (("~/.netrc", "~/_netrc") if named is None else (named,))]  # noqa: PTH111
    path = next((path for path in paths if os.path.exists(path)), None)  # noqa: PTH110
    if path is None:
        return None
    from netrc import NetrcParseError, netrc

    try:
        entry = netrc(path).authenticators(host)
    except (NetrcParseError, OSError):
        return None  # it is for other programs, and may not be for this user
    if entry is None:
        return None
    login, account, password = entry
    return login or account or "", password or ""


# --- The proxy on the way to it.


class _Proxy(NamedTuple):
    host: str
    port: int
    authorization: str | None


def _proxy(to: _Address) -> _Proxy | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names for a receiver, but for those in NO_PROXY."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    scheme = "https" if to.is_tls else "http"
    host: str | None
    found = proxies.get(scheme) or proxies.get("all")
    is_direct = proxy_bypass(to.host) or proxy_bypass(to.name) or _is_in(to.host, proxies.get("no", ""))
    if not found or is_direct:
        return None
    try:
        parts = urlsplit(found if "://" in found else f"http://{found}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme != "http":
        raise ValueError(
            f"the proxy {redacted(found)}, of {scheme.upper()}_PROXY or ALL_PROXY, cannot be used: "
            f"it has to be http://HOST:PORT; name {to.host} in NO_PROXY to do without one"
        )
    user, password = unquote(parts.username or ""), parts.password
    authorization = _basic(user, unquote(password)) if user and password is not None else None
    return _Proxy(host, port or _PROXY, authorization)


def _is_in(host: str, listed: str) -> bool:
    """Return whether an address belongs to one of the networks in a list, as 10.0.0.0/8."""
    if "/" not in listed:
        return False
    from ipaddress import ip_address, ip_network

    with suppress(ValueError):
        address = ip_address(host)
        for one in listed.split(","):
            with suppress(ValueError):
                if "/" in one and address in ip_network(one.strip(), strict=False):
                    return True
    return False
