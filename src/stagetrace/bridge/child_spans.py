"""A tracer provider for instrumentations that no setting names: its spans are children, never roots.

Their exceptions are recorded as stagetrace records exceptions, and credentials in texts are redacted.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Status, StatusCode, Tracer, TracerProvider

from stagetrace.bridge.entry import RequestSpan
from stagetrace.guard import guarded
from stagetrace.request import limits
from stagetrace.text import redacted_start

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.trace import Span, SpanContext

MAX_STATEMENT: Final = 4_096  # characters of a statement that are recorded


class ChildSpans(TracerProvider):
    """The process's tracer provider, except that it makes no span without a parent."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        """Return a tracer of the process's provider that starts children only."""
        return _Tracer(trace.get_tracer_provider().get_tracer(*args, **kwargs))


class _Tracer(Tracer):
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(
        self,
        name: str,
        context: Any = None,
        kind: Any = trace.SpanKind.INTERNAL,
        attributes: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if trace.get_current_span(context) is INVALID_SPAN:
            return INVALID_SPAN
        return _ChildSpan(self._tracer.start_span(name, context, kind, _redacted(attributes), *args, **kwargs))

    def start_as_current_span(self, *args: Any, end_on_exit: bool = True, **kwargs: Any) -> Any:
        return _current(self.start_span(*args, **kwargs), ends=end_on_exit)


@contextmanager
def _current(span: Span, *, ends: bool) -> Iterator[Span]:
    """Let a span be the current one in the block, and end with it; an exception of the block is recorded on it."""
    with trace.use_span(span, ends, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except Exception as error:
            _fail(span, error)
            raise


@guarded
def _fail(span: Span, error: Exception) -> None:
    limits.record(span, error)
    span.set_status(Status(StatusCode.ERROR, limits.description_of(error)))


@guarded
def _redacted(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: _value(value) for key, value in (attributes or {}).items()}


def _value(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=256)
def _text(text: str) -> str:
    return redacted_start(text, MAX_STATEMENT)


class _ChildSpan(RequestSpan):
    """A span as its instrumentation sees it: texts are redacted before they are set on it."""

    def __init__(self, span: Span) -> None:
        self._entry = span

    def get_span_context(self) -> SpanContext:
        """Return the span's own context."""
        return self._entry.get_span_context()

    @guarded
    def set_attributes(self, attributes: Any) -> None:
        self._entry.set_attributes(_redacted(attributes) or {})

    @guarded
    def set_attribute(self, key: str, value: Any) -> None:
        self._entry.set_attribute(key, _value(value))

    @guarded
    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        code, text = (status.status_code, status.description) if isinstance(status, Status) else (status, description)
        self._entry.set_status(Status(code, limits.details(text) if text else None))

    @guarded
    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,  # noqa: ARG002
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: ARG002
    ) -> None:
        limits.record(self._entry, exception, timestamp)
