"""OpenTelemetry's context, and an entry span of the SDK's as the user's code sees it there."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation import _SPAN_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import SpanContext, Status, StatusCode

    from stagetrace.recording.record import RequestRecord

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

    def __init__(self, entry: Span, record: RequestRecord) -> None:
        self._entry = entry
        self._record = record

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        return self._record.stage_context() or self._entry.get_span_context()

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
