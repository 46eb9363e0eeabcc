"""The entry span of a request for its adapter: ours (`entry.OwnSpan`), or one at somebody else's provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from stagetrace.recording.context import RequestSpan
from stagetrace.recording.current_timeline import current

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from stagetrace.recording.timeline import Timeline


class SpanBackend(Protocol):
    """The entry span of one request. Its adapter names and ends it; the request's code sees `seen` as current span."""

    @property
    def entry(self) -> Span:
        """The span itself, on which exceptions and the status are set."""

    @property
    def seen(self) -> Span:
        """The span as the request's code sees it: what is started under it hangs under the open stage."""

    def rename(self, name: str) -> None:
        """Name the span, unless the request's code has."""

    def end_request(self, ended_at: int, method: str | None, route: str, *, failed: bool) -> None:
        """End the span at a time in nanoseconds; `failed`: the response was a server's error."""

    def release(self) -> None:
        """Drop the references to the record and the adapter, which refer to this: no work for the collector."""


class Ended(Protocol):
    """The adapter of a request's protocol, as far as an entry span at somebody else's provider asks it."""

    def known_attributes(self) -> dict[str, Any]:
        """Return what is known when the request comes in."""

    def late_attributes(self) -> Mapping[str, Any]:
        """Return what is known when it has ended, and was not before."""


class SdkSpan:
    """An entry span at the provider that somebody else has set, started as the request comes in.

    `SLASpanProcessor`, which has joined that provider, takes the record from the context as the span starts, and adds
    stages and verdict as it ends.
    """

    def __init__(self, record: Timeline, adapter: Ended, name: str, parent_context: Context) -> None:
        self._adapter: Ended | None = adapter
        self._name = name
        before = current.get()
        current.set(record)
        try:
            self.entry: Any = trace.get_tracer("stagetrace").start_span(
                name, parent_context, SpanKind.SERVER, adapter.known_attributes(), start_time=record.started
            )
        finally:
            current.set(before)
        self.seen = RequestSpan(self.entry, record)

    def rename(self, name: str) -> None:
        """Name the span, unless the request's code has."""
        if getattr(self.entry, "name", None) == self._name:
            self._name = name
            self.entry.update_name(name)

    def end_request(self, ended_at: int, method: str | None, route: str, *, failed: bool) -> None:  # noqa: ARG002
        """End the span, by whose attributes the processor knows method and route."""
        if self._adapter is not None:
            self.entry.set_attributes(self._adapter.late_attributes())
        if failed and getattr(self.entry, "status", Status()).is_unset:
            self.entry.set_status(StatusCode.ERROR)
        self.entry.end(ended_at)

    def release(self) -> None:
        """Drop the reference to the adapter."""
        self._adapter = None
