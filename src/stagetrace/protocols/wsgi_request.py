"""The adapter of WSGI: what a server calls and an application returns becomes marks and attributes of the request."""

from __future__ import annotations

import functools
import inspect
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.protocols import http
from stagetrace.protocols import http as http_metrics
from stagetrace.protocols.base import request_in
from stagetrace.protocols.connection import add_wsgi, arrived, arriving
from stagetrace.protocols.http_headers import HEADERS, time_in_queue_ms
from stagetrace.protocols.http_request import HttpRequest
from stagetrace.protocols.scope import PROPAGATORS, below, is_part
from stagetrace.protocols.wsgi_response import WHERE, Transfer, incomplete_reason, status_code
from stagetrace.request import limits
from stagetrace.request.context import here, open_entry
from stagetrace.request.current import SCOPE_KEY, current, entries
from stagetrace.request.loop_blockers import LONG_NS, note
from stagetrace.request.request import Request
from stagetrace.runtime.runtime import runtime
from stagetrace.sources.thread_cpu import DIVIDED_NS, sample
from stagetrace.tracing.propagation import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.otlp.encode import Block
    from stagetrace.protocols.connection import Arrival
    from stagetrace.request.own_span import Recorder

OTHERS = ("CONTENT_TYPE", "CONTENT_LENGTH")  # the headers that go without a prefix


def key_of(name: str) -> str:
    """Return under which key of an environ the header of that name is."""
    key = name.upper().replace("-", "_")
    return key if key in OTHERS else f"HTTP_{key}"


def decoded(text: str) -> str:
    """Return what WSGI hands over as if its bytes were latin-1."""
    return text if text.isascii() else text.encode("latin-1").decode(errors="replace")


def header_in(environ: Any, name: str) -> str | None:
    """Return the value of a header of a request, its name in lower case; None if there is no such header."""
    value = environ.get(key_of(name))
    return decoded(value) if value else None


STARTS = tuple(map(key_of, HEADERS))


def path_of(environ: Any) -> str:
    """Return the whole path of a request."""
    return decoded(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))


def _carried(environ: Any) -> Mapping[str, Any]:
    """Return the context that the headers carry, which is empty if they carry none."""
    if environ.keys().isdisjoint(_fields(here.fields)):
        return NO_CONTEXT
    return here.extract({name: [value] for name, value in _headers(environ)})


@functools.lru_cache(maxsize=4)
def _fields(names: frozenset[str]) -> frozenset[str]:
    return frozenset(map(key_of, names))


def _headers(environ: Any) -> list[tuple[str, str]]:
    headers = [(key[5:].replace("_", "-").lower(), value) for key, value in environ.items() if key.startswith("HTTP_")]
    headers.extend((key.replace("_", "-").lower(), environ[key]) for key in OTHERS if environ.get(key))
    return headers


def _in_bytes(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def known(environ: Any, method: str, user_agent: bytes | None) -> tuple[Block, Block, str]:
    """Return `http.shared` for an environ, whose parts cost more to take apart than to look up."""
    get = environ.get
    host = get("HTTP_HOST") or get("SERVER_NAME", "")
    if len(host) > http.MAX_CACHED_KEY:
        host = ""
    server = host, get("SERVER_PORT")
    client = get("REMOTE_ADDR"), get("REMOTE_PORT")
    return _known(method, get("wsgi.url_scheme"), get("SERVER_PROTOCOL", ""), server, client, user_agent)


@functools.lru_cache(http.MAX_CACHED_CLIENTS)
def _known(
    method: str,
    scheme: str | None,
    protocol: str,
    named: tuple[str, str | None],
    asking: tuple[str | None, str | None],
    user_agent: bytes | None,
) -> tuple[Block, Block, str]:
    host, port = named
    name, _, named_port = host.rpartition(":")
    server = (name if named_port.isdigit() and name else host), int(port) if port else None
    address, own_port = asking
    client = (address, int(own_port or 0)) if address else None
    return http.shared(method, scheme, protocol.rpartition("/")[2], server, client, user_agent)


class WsgiRequest(Transfer, HttpRequest):
    """One request and its response, from the server's first sight of it to the last byte handed over."""

    _failure: BaseException | None = None

    def __init__(self, environ: Any, arrival: Arrival | None, started: int, recorder: Recorder | None) -> None:
        super().__init__(start=started if arrival is None else arrival.start)
        parent_context = self._come_in(environ)
        self._begun = started  # when the application was called
        if arrival is not None:
            for activity, attributes, begin, end in arrival.waits:
                self.enter(activity, attributes, begin)
                self.leave(activity, end or started)
        self.wrap_body(environ)
        open_entry(self, self._span_name, parent_context, recorder)
        self._context = here.around(self, parent_context)
        if recorder is not None and recorder.processor.has_others:
            recorder.begin(self)

    def _come_in(self, environ: Any) -> Mapping[str, Any]:
        """Note what came in; return the context that the headers carry."""
        self._environ = environ
        self._script = environ.get("SCRIPT_NAME", "")
        agent = environ.get("HTTP_USER_AGENT")
        starts = [environ[key] for key in STARTS if key in environ]
        if starts:
            self._in_front_ms = time_in_queue_ms(starts, time_ns())
        self.method = method = environ.get("REQUEST_METHOD", "")
        self.path = path_of(environ)
        agent = None if agent is None else agent.encode("latin-1")
        if agent is not None and (len(agent) > http.MAX_CACHED_KEY or len(agent) > limits.longest()):
            agent, self._long_agent = None, agent
        self.block, self.client, self._span_name = known(environ, method, agent)
        context = _carried(environ)
        if SCOPE_KEY in environ:
            context = below(environ[SCOPE_KEY], context)
        environ[SCOPE_KEY] = self
        return context

    def connection_attributes(self) -> dict[str, Any]:
        """Return what the kernel reports of the connection now, as the request ends."""
        attributes: dict[str, Any] = {}
        add_wsgi(self._environ, attributes)
        return attributes

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if there is no such header."""
        return header_in(self._environ, name)

    def _requested(self, asked_for: http.AskedFor) -> dict[str, Any]:
        query = self._environ.get("QUERY_STRING", "").encode("latin-1")
        scope = {"headers": _in_bytes(_headers(self._environ)), "query_string": query}
        return asked_for.attributes(scope, self._response_headers)

    def _add_rest(self, attributes: dict[str, Any]) -> None:
        """Add what no two requests share."""
        if self._failure is not None and not self._failed():
            attributes["error.type"] = type(self._failure).__qualname__
        super()._add_rest(attributes)

    def enter_framework(self, environ: Any) -> None:
        """Note that a framework within gets the request, perhaps mounted under a part of the path."""
        script = environ.get("SCRIPT_NAME", "")
        if script != self._script and script.startswith(self._script):
            self.mount = self.route = decoded(script[len(self._script) :])
            self._rename(self.mount)

    def _note_headers(self, status: str, headers: Any) -> Any:
        self.status_code = status_code(status)
        if PROPAGATORS in sys.modules and not self.is_announced:
            added = http.announced(self.entry_span)
            headers = [*headers, *added] if added else headers
        if http.asked_for() is not None:
            self._response_headers = _in_bytes(headers)
        return headers

    @guarded_end
    def fail(self, error: BaseException) -> None:
        """Note the exception behind a response that is to be a 500."""
        if self._failure is error:
            return
        self._failure = error
        self.record_error(error)

    @guarded_end
    def note_incomplete(self) -> None:
        """Note that the server closes an incomplete response, as a rule since nobody takes the rest."""
        if self._failure is None and not self._has_all():
            self.disconnect = incomplete_reason()

    @guarded_end
    def note_uncaught(self, error: BaseException) -> None:
        """Note an exception that the application let through; a server that has sent nothing yet sends a 500."""
        self.fail(error)
        if not self._has_sent:
            self.status_code = http.SERVER_ERROR

    @guarded_end
    def finish(self) -> None:
        """End as the response has, if nothing has ended it yet."""
        if self._finished:
            return
        self._finished = True
        ended_at = time_ns() if self._ended_at is None else self._ended_at
        try:
            if ended_at - self._begun >= LONG_NS and not self._environ.get("wsgi.multithread"):
                note(self._begun, ended_at, self)  # its worker has served nobody else
            if time_ns() - self._begun >= DIVIDED_NS:
                self.divide_rest()
            self._end(ended_at)
        finally:
            # They held this, and this holds them: no work for the garbage collector.
            self._environ.pop(SCOPE_KEY, None)
            self._environ = self._start_response = self._failure = None
            self.release()


@guarded
def note_route(template: str, environ: Any = None) -> None:
    """Note by which route the request at hand is served, whichever server it came by."""
    request = (request_in(environ) if environ is not None else None) or current.get()
    set_route = getattr(request, "set_route", None)
    if set_route is not None:
        set_route(template)


@guarded
def note_failure(error: BaseException) -> None:
    """Note an exception that a framework has answered with a 500."""
    fail = getattr(current.get(), "fail", None)
    if fail is not None:
        fail(error)


# --- A WSGI request whose entry span is that of OpenTelemetry's own instrumentation of WSGI, Flask or Django.
#
# Its stages are marked all the same, on a request that the entry span is bound to as it starts, and
# `patches/opentelemetry.py` lets the application see that span as one that hands on its stages. An
# application that hides its instrumentation from `adopts` gets our entry span, and theirs becomes INTERNAL under it, by
# their own rule.

OTEL_PACKAGE = "opentelemetry.instrumentation."
ADOPTED = tuple(OTEL_PACKAGE + name for name in ("wsgi", "flask", "django"))
# Under which names a WSGI middleware keeps what it wraps.
INNER = ("app", "wsgi_app", "application", "wsgi", "wrapped", "_app", "__wrapped__")
MOST_LAYERS = 16


class AdoptedRequest(Transfer, Request):
    """A request that others record: marked are the times at which body and response pass, and who went away."""

    _raised = False

    def __init__(self, environ: Any, context: Any) -> None:
        super().__init__()
        self._context = context
        self._environ = environ
        self.method = environ.get("REQUEST_METHOD", "")
        environ[SCOPE_KEY] = self
        self.wrap_body(environ)

    def method_and_route(self) -> tuple[str | None, str]:
        """Return method and route as the policy names them, as far as they are known by now."""
        span = self.adopted
        return self.method, str((getattr(span, "attributes", None) or {}).get("http.route", ""))

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if there is no such header."""
        return None if self._environ is None else header_in(self._environ, name)

    def set_route(self, template: str) -> None:
        """Note the route, where they do not: plain WSGI middleware."""
        span = here.current_span()
        if getattr(span, "is_of_request", False) and "http.route" not in (getattr(span, "attributes", None) or ()):
            span.set_attribute("http.route", template)

    def note_uncaught(self, error: BaseException) -> None:  # noqa: ARG002
        """Note that it was the application that did not complete the response."""
        self._raised = True

    @guarded_end
    def note_incomplete(self) -> None:
        """Note why the rest is not sent; theirs ends next, as the application closes its response."""
        if not self._raised and not self._has_all():
            self.disconnect = incomplete_reason()

    @guarded_end
    def finish(self) -> None:
        """Let go; theirs ends when it ends."""
        if self._environ is not None:
            self._environ.pop(SCOPE_KEY, None)
            self._environ = self._start_response = None

    def let_go(self) -> None:
        """Let go of the request, too: their span has ended as the application closed its response."""
        super().let_go()
        self.release()


def adopts(app: Any) -> bool:
    """Return whether an application's entry spans are those of OpenTelemetry's instrumentation, and are sent."""
    if sys.modules.keys().isdisjoint(ADOPTED):
        return False
    from stagetrace.bridge.provider import is_silent

    layer = app
    for _ in range(MOST_LAYERS):
        layer = getattr(layer, "__self__", layer)  # of a bound method
        kind = type(layer).__module__
        instrumented = kind.startswith(OTEL_PACKAGE) or getattr(layer, "_is_instrumented_by_opentelemetry", False)
        if instrumented and not is_silent(_tracer(layer)):
            return True
        if kind.startswith("django.core.handlers"):
            from django.conf import settings
            from django.utils.module_loading import import_string

            theirs = [import_string(name) for name in settings.MIDDLEWARE if name.startswith(OTEL_PACKAGE)]
            return any(not is_silent(getattr(one, "_tracer", None)) for one in theirs)
        inside = getattr(layer, "__dict__", {})
        layer = next((inside[name] for name in INNER if callable(inside.get(name))), None)
        if layer is None:
            return False
    return False


def _tracer(layer: Any) -> Any:
    """Return the tracer of what OpenTelemetry has instrumented; None where that cannot be told."""
    before_request = getattr(layer, "_before_request", None)  # Flask's, which has it in its closure
    if before_request is not None:
        return inspect.getclosurevars(before_request).nonlocals.get("tracer")
    return getattr(layer, "tracer", None)


# --- Any WSGI application, called inside an entry span of its own.
#
# The patch of a server calls `serve` in place of the application: it sees every application and knows when the request
# arrived. Where no server is patched, the patch of a framework does. The first one records the request; the frameworks
# within add its route.

# Whose OTEL_PYTHON_<name>_EXCLUDED_URLS holds where it is loaded; OpenTelemetry has an instrumentation for each.
FRAMEWORKS = ("flask", "django", "falcon", "pyramid")
_patch = switch(WHERE)


def serve(app: Any, call: Callable[[Any, Any], Any], environ: Any, start_response: Any) -> Any:
    """Serve one request by `call(environ, start_response)`, which is `app`'s, inside an entry span of its own."""
    try:
        request = None if _patch.off else _begin(app, environ)
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        report(WHERE, error)
        request = None
    if request is None:
        return call(environ, start_response)
    first = request.step = sample(time_ns())
    try:
        return request.run(call, environ, start_response)
    finally:
        request.end_section_of(first)


def _begin(app: Any, environ: Any) -> WsgiRequest | AdoptedRequest | None:
    """Return the request that begins; None if it is a part of one, or not to be recorded."""
    arrival = arriving.get()
    if arrival is not None:
        arriving.set(None)
    if (SCOPE_KEY in environ or current.get() is not None or entries or here.get_current()) and is_part(environ):
        return None
    if not runtime.ready:
        runtime.prepare_now()
    lists = _excluded()
    if lists and any(urls.url_disabled(_url(environ)) for urls in lists):
        return None
    if adopts(app):
        return AdoptedRequest(environ, here.get_current())
    recorder = here.recorder
    if recorder is None and not here.has_provider:
        return None
    started = time_ns()
    arrival = arrived(environ, arrival, started)
    request = WsgiRequest(environ, arrival, started, recorder)
    counted = http_metrics.wanted()
    if counted is not None:
        request.count_in(counted)
    return request


@functools.cache
def _excluded() -> list[Any]:
    loaded = [name.upper() for name in FRAMEWORKS if name in sys.modules] or ["WSGI"]
    return [urls for urls in map(http.excluded, loaded) if urls is not None]


def _url(environ: Any) -> str:
    host = environ.get("HTTP_HOST") or f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT', '')}"
    return f"{environ.get('wsgi.url_scheme', 'http')}://{host}{path_of(environ)}"
