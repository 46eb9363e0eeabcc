"""An outgoing call of a recorded request: a CLIENT span under the open stage, whose context goes along in its headers.

Where OpenTelemetry's own instrumentation of a client is active, or whoever calls has put headers of a propagator's
there, nothing of ours is added.
"""

from __future__ import annotations

import functools
from random import getrandbits
from time import time_ns
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stagetrace.guard import guarded_end
from stagetrace.recording.current_timeline import current, recording

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from opentelemetry.trace import SpanContext

    from stagetrace.recording.timeline import Timeline
    from stagetrace.sla.entry_recorder import EntryRecorder

CALL = "_stagetrace_call"  # on what stands for an answer that is not read to its end yet
CLIENT_ERROR = 400  # to a client, any from here on is one
DEFAULT_PORTS = {"http": 80, "https": 443}


class Call:
    """One outgoing call, from its begin until its answer has come whole, or will not be read on."""

    added: Mapping[str, str] = {}  # the headers that go along
    _status: Mapping[str, Any] = {}
    _answered_at: int | None = None
    _timeline: Timeline | None = None  # of the request, until this has ended

    def __init__(self, timeline: Timeline, name: str, attributes: dict[str, Any], parent: SpanContext) -> None:
        self._timeline = timeline
        self._name = name
        self._attributes = attributes
        self._parent = parent
        self._start = time_ns()

    def span(self) -> Any:
        """Return the span, or what stands for it until it has ended."""
        raise NotImplementedError

    def headers(self) -> Mapping[str, str]:
        """Return what goes along, as the propagators of OTEL_PROPAGATORS write it."""
        from opentelemetry import propagate, trace

        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self.span()))
        self.added = carrier
        return carrier

    @guarded_end
    def answer(self, status: Mapping[str, Any], find: Callable[[], Any] | None = None) -> None:
        """Note the status of the answer, whose body may follow; an `error.type` in it makes the span an error.

        `find` returns the socket that it comes by.
        """
        self._status, self._answered_at = status, time_ns()
        if find is not None:
            from stagetrace.instrumentation.connection.tcp_attributes import add_call

            self._status = {**status}
            add_call(find, self._status)

    @guarded_end
    def fail(self, error: BaseException) -> None:
        """End with what the call raised."""
        name, module = type(error).__qualname__, type(error).__module__
        self._status = {"error.type": name if module == "builtins" else f"{module}.{name}"}
        self._finish(time_ns())

    @guarded_end
    def end(self) -> None:
        """End now, unless it has ended."""
        self._finish(time_ns())

    def _finish(self, ended_at: int) -> None:
        timeline, self._timeline = self._timeline, None
        if timeline is None:
            return
        entered = current.set(timeline)  # in which SLASpanProcessor notes the call; gRPC ends it anywhere
        try:
            self._end_span(max(ended_at, self._start))
        finally:
            current.reset(entered)

    def _end_span(self, ended_at: int) -> None:
        raise NotImplementedError

    def __del__(self) -> None:
        # Nobody has read the answer to its end, or closed it.
        if self._timeline is not None and self._answered_at is not None:
            self._end_unread(self._answered_at)

    @guarded_end
    def _end_unread(self, answered_at: int) -> None:
        self._finish(answered_at)


class OwnCall(Call):
    """A call whose span is made as it ends, as those of stages are, for the provider that this package has set."""

    def __init__(
        self, timeline: Timeline, name: str, attributes: dict[str, Any], parent: SpanContext, recorder: EntryRecorder
    ) -> None:
        from opentelemetry.trace import SpanContext

        super().__init__(timeline, name, attributes, parent)
        self._recorder = recorder
        self._context = SpanContext(
            parent.trace_id,
            getrandbits(64) or 1,
            is_remote=False,
            trace_flags=parent.trace_flags,
            trace_state=parent.trace_state,
        )

    def span(self) -> Any:
        """Return a span of its context."""
        from opentelemetry.trace import NonRecordingSpan

        return NonRecordingSpan(self._context)

    def _end_span(self, ended_at: int) -> None:
        self._recorder.add_call(
            self._name, self._context, self._parent, {**self._attributes, **self._status}, (self._start, ended_at)
        )


class ForeignCall(Call):
    """A call whose span is started at the provider that somebody else has set."""

    def __init__(self, timeline: Timeline, name: str, attributes: dict[str, Any], parent: SpanContext) -> None:
        from opentelemetry.trace import SpanKind, get_tracer

        super().__init__(timeline, name, attributes, parent)
        self._span = get_tracer("stagetrace").start_span(
            name, kind=SpanKind.CLIENT, attributes=attributes, start_time=self._start
        )

    def span(self) -> Any:
        """Return the span."""
        return self._span

    def _end_span(self, ended_at: int) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(self._status)
        if "error.type" in self._status:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(ended_at)


def begin(name: str, attributes: dict[str, Any]) -> Call | None:
    """Begin an outgoing call; None outside a recorded request, and where somebody keeps instrumentation away."""
    timeline = recording()
    if timeline is None:
        return None
    from opentelemetry import context as otel_context
    from opentelemetry import trace

    from stagetrace.runtime.runtime import runtime

    context = otel_context.get_current()
    if any(context.get(key) for key in _suppress_keys(otel_context)):
        return None
    parent = trace.get_current_span(context).get_span_context()
    if not parent.is_valid:  # somebody has taken the request out of OpenTelemetry's context: no part of its trace
        return None
    if runtime.recorder is not None:
        return OwnCall(timeline, name, attributes, parent, runtime.recorder)
    return ForeignCall(timeline, name, attributes, parent)


def _suppress_keys(otel_context: Any) -> tuple[str, str]:
    """Return the keys that suppress_instrumentation() and suppress_http_instrumentation() set in the context."""
    return otel_context._SUPPRESS_INSTRUMENTATION_KEY, otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY


def begin_http(instrumentation: str, method: str, url: str, carried: Container[str]) -> Call | None:
    """Begin an HTTP request to `url`, which carries headers of these names, unless these carry a context already.

    `instrumentation` is the client's name in OTEL_PYTHON_<instrumentation>_EXCLUDED_URLS.
    """
    if recording() is None or carries(carried):
        return None
    from stagetrace.instrumentation.http import attributes as http

    excluded = http.excluded(instrumentation)
    if excluded is not None and excluded.url_disabled(url):
        return None
    return begin(http.span_name(method, ""), _http_attributes(http, method, url))


def _http_attributes(http: Any, method: str, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    server, origin = _server(parts.scheme, parts.netloc)
    asked = http.asked_for() if parts.query else None
    query = asked.query(parts.query) if asked is not None else ""
    known = http.sanitize_method(method)
    attributes = {
        "http.request.method": known,
        **server,
        "url.full": f"{origin}{parts.path}?{query}" if query else f"{origin}{parts.path}",
    }
    if known != method:
        attributes["http.request.method_original"] = method
    return attributes


@functools.lru_cache(maxsize=1024)
def _server(scheme: str, netloc: str) -> tuple[Mapping[str, Any], str]:
    """Return the attributes of a server, and the beginning of URLs there, without the user and password before it."""
    parts = urlsplit(f"//{netloc}")
    server: dict[str, Any] = {"server.address": parts.hostname or ""}
    port = parts.port or DEFAULT_PORTS.get(scheme)
    if port is not None:
        server["server.port"] = port
    return server, f"{scheme}://{netloc.rpartition('@')[2]}"


@functools.lru_cache(maxsize=1024)
def http_status(code: int) -> Mapping[str, Any]:
    """Return the attributes of an answer with this status code, not to be changed."""
    attributes: dict[str, Any] = {"http.response.status_code": code}
    if code >= CLIENT_ERROR:
        attributes["error.type"] = str(code)
    return attributes


def carries(names: Container[str]) -> bool:
    """Return whether headers of these names, in lower case, carry a context already."""
    from opentelemetry import propagate

    return any(field in names for field in _fields(propagate.get_global_textmap()))


@functools.lru_cache(maxsize=4)
def _fields(textmap: Any) -> frozenset[str]:
    return frozenset(field.lower() for field in textmap.fields) - {"baggage"}


@guarded_end
def _end_of(answer: Any) -> None:
    call = answer.__dict__.pop(CALL, None)
    if call is not None:
        call.end()


def ending(original: Any) -> Any:
    """Return a method of an answer's that ends its call."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            _end_of(self)

    return method
