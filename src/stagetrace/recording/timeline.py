"""The Timeline of one request: begin and end marks come in, stages that tile the request come out.

Every instant belongs to one stage. Where several activities are open, an explicit mark wins, then inference, then
the waits; where none is, it is a gap, whose name (preprocess, postprocess or handler) is known when a later event
settles it.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanContext

from stagetrace.guard import guarded
from stagetrace.semconv import (
    HANDLER,
    INFERENCE,
    NETWORK_RECEIVE,
    NETWORK_SEND,
    POSTPROCESS,
    PREPROCESS,
    QUEUE,
    TRANSFORM,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GAP = ""
# Of several open activities, the first of these gives the stage its name.
PRIORITY = (INFERENCE, TRANSFORM, QUEUE, NETWORK_SEND, NETWORK_RECEIVE)
MAX_SEGMENTS = 128
# Between two pieces of a body, and after the last one sent, so short a gap is part of moving it, not a stage.
WIRE_OVERHEAD_NS = 50_000
MAX_STAGE_NAMES = 32
OTHER = "other"


class Segment:
    """One visit to one stage: [start, end) in nanoseconds since the epoch."""

    __slots__ = ("attributes", "coalesced", "context", "end", "explicit", "stage", "start")

    def __init__(self, stage: str, start: int) -> None:
        self.stage = stage
        self.start = start
        self.end = start
        self.attributes: dict[str, Any] = {}
        self.context: SpanContext | None = None  # given out as a parent: this segment must become a span of its own
        self.explicit = False
        self.coalesced = 0


class Mark:
    """One explicit `with stage(name)` block; an object, so that the same name can be open twice."""

    __slots__ = ("attributes", "stage")

    def __init__(self, stage: str, attributes: Mapping[str, Any] | None = None) -> None:
        self.stage = stage
        self.attributes = attributes


class Timeline:
    """Marks of one request, from any of its threads and tasks. Methods never raise; after `close` they do nothing.

    At most MAX_SEGMENTS visits are kept one by one. Later ones are summed per stage and laid end to end at the
    close: sums stay exact, order within that tail does not.
    """

    __slots__ = (
        "_clock",
        "_counts",
        "_inferred",
        "_limit",
        "_lock",
        "_marks",
        "_open",
        "_pending",
        "_segments",
        "_tail",
        "_tail_visits",
        "closed",
        "entry",
        "model",
    )

    def __init__(self, clock: Callable[[], int] = time.time_ns, limit: int = MAX_SEGMENTS) -> None:
        self._lock = threading.Lock()  # guards all fields but the clock and the limit
        self._clock = clock
        self._limit = limit
        self._segments: list[Segment] = []
        self._open = Segment(GAP, clock())
        self._pending: list[Segment] = []  # closed gaps and transforms, not yet named
        self._counts = dict.fromkeys(PRIORITY, 0)
        self._marks: list[Mark] = []
        self._inferred = False
        self._tail: dict[str, int] = {}
        self._tail_visits: dict[str, int] = {}
        self.entry: SpanContext | None = None
        self.model: dict[str, Any] = {}  # attributes of the first inference, repeated on the entry span
        self.closed = False

    @guarded
    def bind(self, entry: SpanContext, start: int) -> None:
        """Begin the first stage where the entry span begins."""
        with self._lock:
            self.entry = entry
            if not self._segments:
                self._open.start = start

    @property
    def bound(self) -> bool:
        """Whether an entry span is open that this timeline will tile."""
        return self.entry is not None and not self.closed

    @guarded
    def begin(self, activity: str, attributes: Mapping[str, Any] | None = None) -> None:
        """Note that an activity of PRIORITY begins; activities of one kind may overlap and then count once."""
        with self._lock:
            if not self.closed:
                self._counts[activity] += 1
                self._switch(activity, attributes)

    @guarded
    def end(self, activity: str) -> None:
        """Note that an activity ends."""
        with self._lock:
            if not self.closed and self._counts[activity]:
                self._counts[activity] -= 1
                self._switch(activity, None)

    @guarded
    def begin_mark(self, mark: Mark) -> None:
        """Note that an explicit stage begins; the latest one still open wins."""
        with self._lock:
            if not self.closed:
                self._marks.append(mark)
                self._switch(mark.stage, mark.attributes)

    @guarded
    def end_mark(self, mark: Mark) -> None:
        """Note that an explicit stage ends."""
        with self._lock:
            if not self.closed and mark in self._marks:
                self._marks.remove(mark)
                self._switch(mark.stage, None)

    @guarded
    def parent(self) -> SpanContext | None:
        """Return the open stage's span context, under which a span that starts now belongs."""
        entry = self.entry
        if entry is None or self.closed:
            return entry
        with self._lock:
            if self.closed or len(self._segments) >= self._limit:
                return entry
            segment = self._open
            if segment.context is None:
                span_id = random.getrandbits(64) or 1
                segment.context = SpanContext(
                    entry.trace_id,
                    span_id,
                    is_remote=False,
                    trace_flags=entry.trace_flags,
                    trace_state=entry.trace_state,
                )
            return segment.context

    def close(self, start: int, end: int) -> list[Segment]:
        """Return the stages that tile [start, end) to the nanosecond; empty if that interval is."""
        with self._lock:
            self.closed = True
            now = min(self._clock(), end)
            if self._goes_on(NETWORK_SEND, now):
                self._open = self._segments.pop()
            self._close_open(now)
            self._name_rest()
            segments = _merge(self._segments)
            segments.extend(self._tail_blocks(segments))
            return _fit(segments, start, end)

    def _switch(self, activity: str, attributes: Mapping[str, Any] | None) -> None:
        stage = self._current()
        if stage != self._open.stage or self._open.explicit is not bool(self._marks):
            now = self._clock()
            if stage in (NETWORK_SEND, NETWORK_RECEIVE) and self._goes_on(stage, now):
                self._open = self._segments.pop()
                return
            self._close_open(now)
            self._open.stage = stage
            self._open.explicit = bool(self._marks)
            if stage == INFERENCE:
                self._inferred = True
                self._name_pending(PREPROCESS)
        if attributes and self._open.stage == activity:
            self._open.attributes = {**attributes, **self._open.attributes}
        if attributes and activity == INFERENCE and not self.model:
            self.model = dict(attributes)

    def _current(self) -> str:
        if self._marks:
            return self._marks[-1].stage
        counts = self._counts
        for activity in PRIORITY:
            if counts[activity]:
                return activity
        return GAP

    def _goes_on(self, stage: str, now: int) -> bool:
        gap = self._open
        return (
            gap.stage == GAP
            and gap.context is None
            and bool(self._segments)
            and not self._tail
            and self._segments[-1].stage == stage
            and not self._segments[-1].explicit
            and now - gap.start < WIRE_OVERHEAD_NS
        )

    def _close_open(self, now: int) -> None:
        segment = self._open
        segment.end = max(now, segment.start)  # the wall clock may step back
        self._open = Segment(GAP, segment.end)
        if segment.end == segment.start and segment.context is None:
            return
        if len(self._segments) >= self._limit:
            stage = segment.stage
            if stage not in self._tail and len(self._tail) >= MAX_STAGE_NAMES:
                stage = OTHER
            self._tail[stage] = self._tail.get(stage, 0) + segment.end - segment.start
            self._tail_visits[stage] = self._tail_visits.get(stage, 0) + 1
            return
        self._segments.append(segment)
        if segment.stage in (GAP, TRANSFORM):
            self._pending.append(segment)

    def _name_pending(self, name: str) -> None:
        for segment in self._pending:
            segment.stage = name
            segment.attributes = {}
        self._pending.clear()
        for stage in (GAP, TRANSFORM):
            self._rename_tail(stage, name)

    def _rename_tail(self, stage: str, name: str) -> None:
        if stage in self._tail:
            self._tail[name] = self._tail.get(name, 0) + self._tail.pop(stage)
            self._tail_visits[name] = self._tail_visits.get(name, 0) + self._tail_visits.pop(stage)

    def _name_rest(self) -> None:
        """Name what no later inference will settle."""
        if self._inferred:
            self._name_pending(POSTPROCESS)
            return
        transforms = [segment for segment in self._pending if segment.stage == TRANSFORM]
        if not transforms and TRANSFORM not in self._tail:
            self._name_pending(HANDLER)
            return
        last = transforms[-1] if transforms and TRANSFORM not in self._tail else None
        before = PREPROCESS
        for segment in self._pending:
            segment.stage = INFERENCE if segment.stage == TRANSFORM else before
            if segment.stage == INFERENCE:
                self.model = self.model or dict(segment.attributes)
            if segment is last:
                before = POSTPROCESS
        self._pending.clear()
        self._rename_tail(TRANSFORM, INFERENCE)
        self._rename_tail(GAP, POSTPROCESS if last else PREPROCESS)

    def _tail_blocks(self, segments: list[Segment]) -> list[Segment]:
        blocks = []
        at = segments[-1].end if segments else 0
        for stage, duration in self._tail.items():
            block = Segment(stage, at)
            at = block.end = at + duration
            block.coalesced = self._tail_visits[stage]
            blocks.append(block)
        return blocks


def _merge(segments: list[Segment]) -> list[Segment]:
    """Return the segments with neighbours of one inferred stage made one, unless both already have children."""
    merged: list[Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if (
            last is None
            or last.stage != segment.stage
            or last.explicit
            or segment.explicit
            or (last.context and segment.context)
        ):
            merged.append(segment)
            continue
        last.end = segment.end
        last.context = last.context or segment.context
        last.attributes = last.attributes or segment.attributes
    return merged


def _fit(segments: list[Segment], start: int, end: int) -> list[Segment]:
    """Return the segments cut and stretched to [start, end); they are already end to end."""
    if end <= start:
        return []
    fitted = []
    at = start
    for segment in segments:
        segment.start = at
        at = segment.end = min(max(segment.end, at), end)
        if segment.end > segment.start or segment.context is not None:
            fitted.append(segment)
    if not fitted:
        fitted.append(Segment(HANDLER, start))
    fitted[-1].end = end
    return fitted
