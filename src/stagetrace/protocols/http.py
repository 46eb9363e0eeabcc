"""The attributes of an entry span of HTTP, with the stable names of the semantic conventions, for all servers.

Query strings and headers are recorded only if variables ask for them, and secrets never.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import TYPE_CHECKING, Any

from stagetrace import log, settings
from stagetrace.guard import guarded
from stagetrace.otlp.encode import Block
from stagetrace.protocols.http_headers import CALLER, HEADERS
from stagetrace.protocols.http_variables import ExcludedUrls, captured, listed, names, sanitize_method, synthetic_type
from stagetrace.request.context import here
from stagetrace.text import is_secret, redacted, redacted_query
from stagetrace.tracing.propagation import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stagetrace.bridge.metrics import HttpMetrics

if TYPE_CHECKING:
    Headers = Iterable[tuple[bytes, bytes]]

MAX_CACHED = 16_384
MAX_CACHED_CLIENTS = 1_024
MAX_CACHED_KEY = 256
SERVER_ERROR = 500
REQUEST_STARTS = frozenset(name.encode() for name in HEADERS)
STAGETRACE_CALLER = CALLER.encode()
READ = REQUEST_STARTS | {STAGETRACE_CALLER}
# The names in OTEL_PYTHON_<name>_EXCLUDED_URLS.
FRAMEWORKS = (
    *("ASGI", "FASTAPI", "STARLETTE", "LITESTAR", "QUART", "WSGI", "FLASK", "DJANGO", "FALCON", "PYRAMID"),
    *("AIOHTTP_SERVER", "TORNADO"),
)


def known(scope: Mapping[str, Any], user_agent: bytes | None) -> tuple[Block, Block, str]:
    """Return `shared` for an ASGI scope."""
    get = scope.get
    key = get("method", ""), get("scheme"), get("http_version"), get("server"), get("client"), user_agent
    try:
        return shared(*key)
    except TypeError:  # some servers have lists in the scope
        return shared(*(tuple(part) if isinstance(part, list) else part for part in key))


@functools.lru_cache(MAX_CACHED_CLIENTS)
def shared(
    method: str,
    scheme: str | None,
    version: str | None,
    server: tuple[str, int | None] | None,
    client: tuple[str, int] | None,
    user_agent: bytes | None,
) -> tuple[Block, Block, str]:
    """Return what many requests share: `request_block`, `client_block`, and the span name without a route."""
    request = request_block(method, scheme, version, server, user_agent)
    return request, client_block(client), span_name(method, "")


@functools.lru_cache(MAX_CACHED_CLIENTS)
def request_block(
    method: str,
    scheme: str | None,
    version: str | None,
    server: tuple[str, int | None] | None,
    user_agent: bytes | None,
) -> Block:
    """Return the attributes that requests of many clients share."""
    attributes: dict[str, Any] = {"url.scheme": scheme or "http"}
    if method:
        known = attributes["http.request.method"] = sanitize_method(method)
        if known != method:
            attributes["http.request.method_original"] = method
    if version:
        attributes["network.protocol.version"] = version
    if server and server[0]:
        attributes["server.address"] = server[0]
        if server[1]:
            attributes["server.port"] = int(server[1])  # granian's is a text
    if user_agent is not None:
        attributes.update(agent_attributes(user_agent))
    return Block(attributes)


def agent_attributes(user_agent: bytes) -> dict[str, Any]:
    """Return the attributes of a user agent."""
    text = decoded(user_agent)
    attributes: dict[str, Any] = {"user_agent.original": text}
    synthetic = synthetic_type(text)
    if synthetic:
        attributes["user_agent.synthetic.type"] = synthetic
    return attributes


def client_block(client: tuple[str, int] | None) -> Block:
    """Return the attributes of the client; none if the server does not know it, or it is not to be recorded."""
    if not client or not settings.RECORD_CLIENT.read():
        return Block({})
    address, port = client
    return Block({"client.address": address, "client.port": int(port)} if port else {"client.address": address})


@functools.lru_cache(MAX_CACHED)
def span_name(method: str, route: str) -> str:
    """Return the span name `METHOD /route`, as far as both are known."""
    known = sanitize_method(method)
    verb = "HTTP" if known == "_OTHER" else known  # a websocket has no method
    return f"{verb} {route}".strip()


@functools.lru_cache(MAX_CACHED)
def route_block(route: str, status: int | None) -> Block:
    """Return the attributes that all responses of a route with one status share; `route` is empty if there is none."""
    attributes: dict[str, Any] = {}
    if route:
        attributes["http.route"] = route
    if status is not None:
        attributes["http.response.status_code"] = status
        if status >= SERVER_ERROR:
            attributes["error.type"] = str(status)
    return Block(attributes)


# --- headers of the request


def read_headers(headers: Headers) -> tuple[bytes | None, Mapping[str, Any], list[str] | None, bytes | None]:
    """Return the user agent, the trace context of the headers, the values of the load balancers' headers, and CALLER's.

    The context is empty if the headers carry none; the third is None if there are no such headers.
    """
    fields = _fields(here.fields)
    carries = fields == READ
    agent = starts = caller = None
    for name, value in headers:
        if name == b"user-agent":
            agent = value
        elif name in fields:
            if name in REQUEST_STARTS:
                starts = [*(starts or ()), decoded(value)]
            elif name == STAGETRACE_CALLER:
                caller = value
            else:
                carries = True
    context = here.extract(_carrier(headers)) if carries else NO_CONTEXT
    return agent, context, starts, caller


@functools.lru_cache(maxsize=4)
def _fields(names: frozenset[str]) -> frozenset[bytes]:
    """Return the names of the headers that are read: of the propagators, of load balancers, and of our own clients."""
    return READ.union(name.encode("latin-1") for name in names)


def _carrier(headers: Headers) -> dict[str, list[str]]:
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        carrier.setdefault(name.decode("latin-1").lower(), []).append(decoded(value))
    return carrier


def decoded(value: bytes) -> str:
    """Return a header's value as text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")  # as HTTP headers were encoded earlier


# --- excluded URLs, requested headers and query strings


@functools.cache
def excluded(instrumentation: str | None = None) -> ExcludedUrls | None:
    """Return the URLs that OTEL_PYTHON_<instrumentation>_EXCLUDED_URLS, else OTEL_PYTHON_EXCLUDED_URLS, excludes.

    Without an instrumentation, the variables of all frameworks count: a request begins before the server knows which
    framework will serve it.
    """
    named = FRAMEWORKS if instrumentation is None else (instrumentation,)
    variables, patterns = settings.excluded_urls(named)
    try:
        return ExcludedUrls(listed(patterns)) if patterns else None
    except re.error as error:
        _log_bad(" or ".join(variables), error, "no URL is excluded")
        return None


class AskedFor:
    """The headers and query strings that variables ask for, secrets redacted."""

    def __init__(self) -> None:
        self._of_request = _names(settings.CAPTURE_REQUEST)
        self._of_response = _names(settings.CAPTURE_RESPONSE)
        self._query = settings.RECORD_QUERY.read()
        self._sanitized = _names(settings.SANITIZE_FIELDS, ".*")

    def __bool__(self) -> bool:
        return bool(self._of_request or self._of_response or self._query)

    def attributes(self, scope: Mapping[str, Any], response_headers: Headers | None) -> dict[str, Any]:
        """Return the requested attributes of an ASGI scope and of the response's headers."""
        found: dict[str, Any] = {}
        for headers, wanted, prefix in (
            (scope["headers"], self._of_request, "http.request.header."),
            (response_headers, self._of_response, "http.response.header."),
        ):
            if wanted and headers:
                shown = captured(_carrier(headers), wanted, self._is_secret, prefix)
                found.update({attribute: list(map(redacted, values)) for attribute, values in shown.items()})
        query = scope.get("query_string")
        if self._query and query:
            found["url.query"] = self.query(decoded(query))
        return found

    def _is_secret(self, name: str) -> bool:
        return is_secret(name) or (self._sanitized is not None and self._sanitized.search(name) is not None)

    def query(self, text: str) -> str:
        """Return a query string with its secrets redacted; empty if no variable asks for it."""
        return redacted_query(text) if self._query else ""


def _names(setting: settings.Setting, otherwise: str = "") -> re.Pattern[str] | None:
    """Return what finds the names that a variable lists; if one is no regular expression, logged once, `otherwise`."""
    patterns = listed(setting.raw())
    try:
        for pattern in patterns:
            re.compile(pattern)
        return names(patterns) if patterns else None
    except re.error as error:
        _log_bad(setting.name, error, "no header is shown")
        return names([otherwise]) if otherwise else None


def _log_bad(variable: str, error: re.error, outcome: str) -> None:
    log.once(variable, f"{variable} is no list of regular expressions ({error}): {outcome}.")


@functools.cache
def asked_for() -> AskedFor | None:
    """Return what OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_* and STAGETRACE_RECORD_QUERY ask for, if anything."""
    return AskedFor() or None


def announce(message: Any, span: Any) -> None:
    """Add the headers of the global response propagator, if there is one, to an ASGI response."""
    added = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in announced(span)]
    if added:
        message["headers"] = [*message.get("headers", ()), *added]


def announced(span: Any) -> list[tuple[str, str]]:
    """Return the headers that the global response propagator, if there is one, adds to a response."""
    if not here.has_otel:
        return []
    from stagetrace.bridge import propagators

    return propagators.announced(span)


# --- HTTP metrics of the semantic conventions, if the service has set a meter provider.


@functools.cache
@guarded
def wanted() -> HttpMetrics | None:
    """Return the metrics of requests; None if no meter provider is set at the first request."""
    if "opentelemetry.metrics" not in sys.modules:
        return None
    from stagetrace.bridge.metrics import HttpMetrics, has_provider

    return HttpMetrics() if has_provider() else None
