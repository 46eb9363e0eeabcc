"""OpenTelemetry's context, and an entry span of the SDK's as the user's code sees it there."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation import _SPAN_KEY

from stagetrace.request.current import current, entries
from stagetrace.request.own_span import OwnSpan

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import SpanContext

    from stagetrace.request.own_span import Recorder
    from stagetrace.request.request import Request

NO_CONTEXT = Context()


def _direct() -> tuple[Callable[[Context], object], Callable[[], Context]]:
    """Return OpenTelemetry's `attach` and `get_current`, without its two calls around those of a ContextVar.

    Where OTEL_PYTHON_CONTEXT names another runtime context, or a release keeps its own otherwise, its own functions.
    """
    runtime = otel_context._RUNTIME_CONTEXT  # noqa: SLF001
    variable = getattr(runtime, "_current_context", None)
    if type(runtime).__module__ == "opentelemetry.context.contextvars_context" and isinstance(variable, ContextVar):
        return variable.set, variable.get
    return otel_context.attach, otel_context.get_current


attach, get_current = _direct()


def with_span(span: Span, context: Context) -> Context:
    """Return the context with a span in it, as `set_span_in_context` does."""
    return Context({**context, _SPAN_KEY: span})


class RequestSpan(Span):
    """The entry span as the request's code sees it.

    Attributes are set on the entry span; spans that start are children of the open stage.
    """

    def __init__(self, entry: Span, request: Request) -> None:
        self._entry = entry
        self._request = request

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        return self._request.stage_context() or self._entry.get_span_context()

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
                self._request.parent_context,
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
        return self._request.stage_context() or entry.get_span_context()


def open_entry(request: Request, name: str, parent: Context, recorder: Recorder | None, *, late: bool = False) -> Any:
    """Begin the entry span of a request, ours if there is a recorder; return it as the request's code is to see it.

    `parent` is the context that the request has brought along; `late` as for `SdkSpan`.
    """
    request.name = request.label = name
    request.parent_context = parent
    request.bound = True
    if recorder is None:
        backend = request.backend = SdkSpan(request, late=late)
        return backend.seen
    request.recorder, request.own = recorder, True
    return OwnSpan(request)
