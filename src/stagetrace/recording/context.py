"""The current request: found by hooks through a context variable, seen by the user's code as their entry span."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, get_current_span

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext, Status, StatusCode

    from stagetrace.recording.timeline import Timeline

current: ContextVar[Timeline | None] = ContextVar("stagetrace.timeline", default=None)
# Timelines of open entry spans by span id: filled when the entry span starts, emptied when it ends.
entries: dict[int, Timeline] = {}


def recording() -> Timeline | None:
    """Return the timeline of the request that this code serves, if its entry span is open."""
    timeline = current.get()
    if (timeline is None or timeline.closed) and entries:
        # A server that no hook of ours covers, in somebody's own SDK set-up: only the span in context tells.
        timeline = entries.get(get_current_span().get_span_context().span_id)
    return timeline if timeline is not None and timeline.bound else None


class RequestSpan(Span):
    """The entry span as the request's code sees it.

    What is set lands on the entry span; what is started hangs under the open stage.
    """

    def __init__(self, entry: Span, timeline: Timeline) -> None:
        self._entry = entry
        self._timeline = timeline

    def get_span_context(self) -> SpanContext:
        """Return the open stage's context while the request runs, the entry span's afterwards."""
        return self._timeline.parent() or self._entry.get_span_context()

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
