"""The result of a request's marks once it has ended: the stages that tile it, and its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.recording.segments import totals_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import SpanContext

    from stagetrace.recording.segments import Segment


class Stages:
    """The stages of one request, end to end, and `model`: attributes of its first inference for the entry span."""

    __slots__ = ("_segments", "model")

    def __init__(self, segments: list[Segment], model: Mapping[str, Any]) -> None:
        self._segments = segments
        self.model = model

    def segments(self) -> list[Segment]:
        """Return each visit to a stage; empty if the request took no time."""
        return self._segments

    def give_context(self, number: int, context: SpanContext) -> None:
        """Give a visit, by its number in `segments`, the context that its span will have."""
        self._segments[number].context = context

    def totals(self) -> dict[str, int]:
        """Return the time in each stage, in nanoseconds, in the order in which they began."""
        return totals_of(self._segments)
