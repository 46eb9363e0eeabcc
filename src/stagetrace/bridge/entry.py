"""Spans of a request as code sees them that uses OpenTelemetry: its entry span, and those that it starts."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, Status, StatusCode

from stagetrace.bridge.contexts import context_of, span_context
from stagetrace.guard import guarded
from stagetrace.request.current import current, entries
from stagetrace.request.own_span import OwnSpan

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from stagetrace.request.request import Request
    from stagetrace.tracing import span as own


def seen(request: Request) -> Span:
    """Return the entry span of a request as its code sees it; of work for requests, a span with its identity."""
    if request.recorder is not None:
        return SeenSpan(request)
    if request.backend is not None:
        found: Span = request.backend.seen
        return found
    return RequestSpan(NonRecordingSpan(span_context(request.entry)), request)


def _for_sdk(resource: Any) -> Any:
    """Return a resource as that of the SDK, where the process has it."""
    return (
        import_module("stagetrace.bridge.spans").resource(resource) if "opentelemetry.sdk" in sys.modules else resource
    )


@guarded
def _converted(context: Any) -> SpanContext:
    return span_context(context)


def _shown(context: Any) -> SpanContext:
    """Return the identity of a span as OpenTelemetry's. Never raises: the service's code asks."""
    return _converted(context) or trace.INVALID_SPAN_CONTEXT


def _status(status: own.Status) -> Status:
    return Status(StatusCode(status.status_code.value), status.description)


class SeenSpan(OwnSpan, Span):  # type: ignore[misc]  # the types of OpenTelemetry are others
    """The entry span of a request that we record: to code the current span, as the SDK's would be."""

    kind = SpanKind.SERVER  # type: ignore[assignment]

    def get_span_context(self) -> Any:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        return _shown(super().get_span_context())

    @property
    def context(self) -> Any:
        """The entry span's own context."""
        return _shown(super().context)

    @property
    def parent(self) -> Any:
        """The caller's span, in another process."""
        parent = super().parent
        return None if parent is None else _shown(parent)

    @property
    def status(self) -> Any:
        """The status that was set, or that the response gives."""
        return _status(super().status)

    @property
    def resource(self) -> Any:
        """What it comes from."""
        return _for_sdk(super().resource)


class ApiSpan(Span):
    """A span of ours that code has started. What cannot be set is counted as dropped."""

    def __init__(self, span: own.Span) -> None:
        self._span = span

    def get_span_context(self) -> SpanContext:
        """Return its identity."""
        return _shown(self._span.context)

    def _set(self, method: str, *args: Any) -> None:
        try:
            getattr(self._span, method)(*args)
        except Exception:  # noqa: BLE001 -- a value that holds itself or has no text
            self._span.attributes.dropped += 1

    @guarded
    def end(self, end_time: int | None = None) -> None:
        self._span.end(end_time)

    def set_attributes(self, attributes: Any) -> None:
        self._set("set_attributes", attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._set("set_attribute", key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self._set("add_event", name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self._set("add_link", context, attributes)

    def update_name(self, name: str) -> None:
        self._set("update_name", name)

    def is_recording(self) -> bool:
        return self._span.is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._set("set_status", status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        self._set("record_exception", exception, attributes, timestamp, escaped)

    @property
    def status(self) -> Status:
        """The status that was set."""
        return _status(self._span.status)

    @property
    def context(self) -> SpanContext:
        """Its identity."""
        return self.get_span_context()

    @property
    def resource(self) -> Any:
        """What it comes from."""
        return _for_sdk(self._span.resource)

    def __getattr__(self, name: str) -> Any:
        # `name`, `attributes`, `events` ...: what the SDK's span offers beyond the API.
        return getattr(self._span, name)


class RequestSpan(Span):
    """The entry span as the request's code sees it.

    Attributes are set on the entry span; spans that start are children of the open stage.
    """

    is_of_request = True

    def __init__(self, entry: Span, request: Request) -> None:
        self._entry = entry
        self._request = request

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        stage = self._request.stage_context()
        return self._entry.get_span_context() if stage is None else span_context(stage)

    def end(self, end_time: int | None = None) -> None:
        self._entry.end(end_time)

    def set_attributes(self, attributes: Any) -> None:
        self._entry.set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._entry.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self._entry.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self._entry.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self._entry.update_name(name)

    def is_recording(self) -> bool:
        return self._entry.is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._entry.set_status(status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        self._entry.record_exception(exception, attributes, timestamp, escaped)

    def __getattr__(self, name: str) -> Any:
        # `name`, `kind`, `attributes` ...: what the SDK's span offers beyond the API.
        return getattr(self._entry, name)


def adopted_here() -> tuple[Request, Any] | None:
    """Return the request whose entry span is the current one, and the context in which that hands on its stages.

    None where the current span is no entry span of another instrumentation.
    """
    span = trace.get_current_span()
    request = entries.get(span.get_span_context().span_id)
    if request is None:
        return None
    return request, trace.set_span_in_context(RequestSpan(span, request))


class StandIn(RequestSpan):
    """The current span, for an instrumentation whose own span would be sent nowhere.

    It says that it does not record, and does not end, so nothing of the instrumentation's lands on it. What the
    request's code sets does.
    """

    def __init__(self, span: Span) -> None:
        self._entry = span

    def get_span_context(self) -> SpanContext:
        return self._entry.get_span_context()

    def is_recording(self) -> bool:
        return False

    def end(self, end_time: int | None = None) -> None:
        pass


# --- The entry span of a request at the service's own provider.


class SdkSpan:
    """An entry span at a provider that the service has set.

    It starts when the adapter is made. If `late`, it starts when it is first asked for, at the latest at its end: an
    instrumentation inside the application has time to start its own. `SLASpanProcessor`, which has joined the provider,
    takes the request from the context as the span starts, and adds stages and verdict as it ends.
    """

    def __init__(self, request: Request, *, late: bool = False) -> None:
        self._request = request
        self.is_released = False
        self._span: Any = None
        if not late:
            self._start()

    @property
    def entry(self) -> Any:
        """The entry span, started at the latest now; that of another instrumentation if it came first.

        An invalid span once the request has ended, if it was excluded before its entry span was asked for.
        """
        if self._span is None and self._request.adopted is None:
            if self.is_released:
                return trace.INVALID_SPAN
            self._start()
        return self._request.adopted if self._span is None else self._span

    @property
    def seen(self) -> Span:
        """The span as the request's code sees it."""
        return _Seen(self, self._request)

    def _start(self) -> None:
        before = current.get()
        current.set(self._request)
        try:
            self._span = trace.get_tracer("stagetrace").start_span(
                self._request.label or "",
                context_of(self._request.parent_context),
                SpanKind.SERVER,
                self._request.known_attributes(),
                start_time=self._request.started,
            )
        finally:
            current.set(before)

    @property
    def gave_way(self) -> bool:
        """Whether another instrumentation has made the entry span of this request."""
        return self._span is None and self._request.adopted is not None

    def rename(self, name: str) -> None:
        """Name the span, unless the request's code has."""
        if self._span is None:
            self._request.label = name
        elif getattr(self._span, "name", None) == self._request.label:
            self._request.label = name
            self._span.update_name(name)

    def end(self) -> None:
        """End the span, by whose attributes the processor knows method and route."""
        span = self.entry
        if not self.is_released:
            span.set_attributes(self._request.late_attributes())
        if self._request.failed and getattr(span, "status", Status()).is_unset:
            span.set_status(StatusCode.ERROR)
        span.end(self._request.end)

    def forget(self) -> None:
        """Let nobody find the request by its span."""
        if self._span is not None:
            entries.pop(self._span.get_span_context().span_id, None)


class _Seen(RequestSpan):
    """The current span of such a request: the entry span, started when it is first asked for."""

    def __init__(self, backend: SdkSpan, request: Request) -> None:
        self._backend = backend
        self._request = request

    @property
    def _entry(self) -> Span:  # type: ignore[override]
        span: Span = self._backend.entry
        return span

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        entry = self._entry
        stage = self._request.stage_context()
        return entry.get_span_context() if stage is None else span_context(stage)
