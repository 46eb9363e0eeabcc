"""Requests whose entry span is started at the provider that somebody else has set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from stagetrace.guard import guarded
from stagetrace.instrumentation.asgi.request import AsgiRequest
from stagetrace.instrumentation.http import attributes as http
from stagetrace.recording.context import RequestSpan, attach, get_current, with_span
from stagetrace.recording.current_timeline import current
from stagetrace.recording.timeline import Timeline

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext


class ForeignRequest(AsgiRequest, Timeline):
    """A request whose entry span is started when somebody looks at it, at the end the latest.

    So there is time for an instrumentation inside the application to start its own.
    """

    _span: Any = None

    def __init__(self, scope: Any, send: Any, started: int) -> None:
        self._parent_context = self._come_in(scope, send)
        Timeline.__init__(self, start=started)
        self.bound = True
        self._before = get_current()
        current.set(self)
        attach(with_span(LateSpan(self), self._parent_context))

    @guarded
    def reference(self) -> str | None:
        """Return a text that names this request and the stage that it is in."""
        self._own_span()
        return super().reference()

    @property
    def gave_way(self) -> bool:
        """Whether the entry span of this request is somebody else's."""
        return self._span is None and self.adopted is not None

    def hides(self) -> bool:
        """Return whether nobody has seen the entry span."""
        return self.adopted is None

    def _own_span(self) -> Span:
        if self._span is None and self.adopted is None:
            token = current.set(self)  # from where SLASpanProcessor takes it
            try:
                self._span = trace.get_tracer("stagetrace").start_span(
                    self._span_name,
                    self._parent_context,
                    SpanKind.SERVER,
                    self.known_attributes(),
                    start_time=self._start,
                )
            finally:
                current.reset(token)
        span: Span = self.adopted if self._span is None else self._span
        return span

    def _rename(self, name: str) -> None:
        if self._span is None:
            self._span_name = name
        elif getattr(self._span, "name", None) == self._span_name:
            self._span_name = name
            self._span.update_name(name)

    def _end_span(self, ended_at: int) -> None:
        span: Any = self._own_span()
        attributes: dict[str, Any] = {}
        self._add_rest(attributes)
        span.set_attributes({**http.route_block(self._template(), self._status).attributes, **attributes})
        if self._failed() and getattr(span, "status", Status()).is_unset:
            span.set_status(StatusCode.ERROR)
        span.end(ended_at)


class LateSpan(RequestSpan):
    """The entry span of a ForeignRequest as the request's code sees it: looking at it starts it."""

    def __init__(self, request: ForeignRequest) -> None:
        self._timeline = request

    @property
    def _entry(self) -> Span:  # type: ignore[override]
        request: Any = self._timeline
        span: Span = request._own_span()
        return span

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        entry = self._entry
        return self._timeline.stage_context() or entry.get_span_context()
