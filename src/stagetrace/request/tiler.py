"""Work out from the marks of one request the stages that tile it.

Every instant belongs to one stage. Where several activities are open, an explicit mark wins, then inference, then
the waits; where none is, it is a gap, whose name (preprocess, postprocess or handler) is known when a later event
settles it. A gap before an inference is `preprocess`, after the last one `postprocess`, without any `handler`; one of
less than 50 us between two chunks of a body is part of moving the body, or each response would have two stages more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.request.stages import GAP, MAX_SEGMENTS, NOTHING, TRANSFORMS, Segment, Stages, coalesced, totals_of
from stagetrace.semconv import (
    HANDLER,
    INFERENCE,
    ML_MODEL_NAME,
    ML_MODEL_RECOGNISED,
    ML_MODEL_VERSION,
    NETWORK_RECEIVE,
    NETWORK_SEND,
    POSTPROCESS,
    PREPARE,
    PREPROCESS,
    QUEUE,
    TRANSFORM,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    # time in nanoseconds since the epoch, what happens, the activity or mark that it happens to, attributes
    Event = tuple[int, int, Any, Mapping[str, Any] | None]

# What a noted event may be: the begin and end of an activity, of a Mark.
BEGIN, END, BEGIN_MARK, END_MARK = range(4)
# Of several open activities, the first of these gives the stage its name.
PRIORITY = (INFERENCE, POSTPROCESS, TRANSFORM, PREPARE, QUEUE, NETWORK_SEND, NETWORK_RECEIVE)
# More are summed by stage while the request runs.
MAX_VISITS = 1_000
# So many of them may be given out as parents.
MAX_GIVEN = 64
# Between two chunks of a body, and after the last one sent, so short a gap is part of moving it, not a stage.
WIRE_OVERHEAD_NS = 50_000
_WIRE = (NETWORK_SEND, NETWORK_RECEIVE)
OF_MODEL = (ML_MODEL_NAME, ML_MODEL_VERSION)  # attributes of a mark by hand that the entry span gets, too
_NO_COUNTS = dict.fromkeys(PRIORITY, 0)
UNRECOGNISED: dict[str, Any] = {ML_MODEL_RECOGNISED: False}  # shared, and never written to


class Mark:
    """One explicit `with stage(name)` block; an object, so that the same name can be open twice.

    Or a stage in another process or in a batch that was reported afterwards: `context` was given out as a parent
    there; `link` leads to the inference of a batch.
    """

    __slots__ = ("attributes", "context", "link", "stage")

    def __init__(
        self,
        stage: str,
        attributes: Mapping[str, Any] | None = None,
        context: SpanContext | None = None,
        link: SpanContext | None = None,
    ) -> None:
        self.stage = stage
        self.attributes = attributes
        self.context = context
        self.link = link


class Tiler:
    """Events of one request in, stages out. Not thread-safe: the request's lock guards it.

    Where there are more visits than `limit`, short ones are summed: see `coalesced`.
    """

    def __init__(self, start: int, limit: int = MAX_VISITS) -> None:
        self._limit = self._shorten_at = limit
        self._given = 0  # segments that are the parent of a span
        self._segments: list[Segment] = []
        self._open = Segment(GAP, start)
        self._pending: list[Segment] = []  # closed gaps and transforms, not yet named
        self._counts = _NO_COUNTS.copy()
        self._active = 0  # the sum of the counts
        self._marks: list[Mark] = []
        self._inferred = False
        self._model: Mapping[str, Any] = NOTHING  # attributes of the first inference, or that there was none
        self._modelled: Mark | None = None  # the mark by hand that names the model, or a part of it

    @property
    def open(self) -> Segment | None:
        """The open segment, if it will be kept by itself."""
        return self._open if self._given < MAX_GIVEN or self._open.context is not None else None

    def so_far(self) -> list[Segment]:
        """Return the segments until now, the last of which is open; one without a name may get any yet."""
        return [*self._segments, self._open]

    @classmethod
    def totals_until(cls, segments: Iterable[Segment], now: int) -> dict[str, int]:
        """Return the nanoseconds by stage of what `so_far` gave, named as if the request ended now."""
        tiler = cls(now)
        for segment in segments:
            one = Segment(segment.stage, segment.start)
            one.end = max(segment.end, segment.start)
            one.explicit, one.attributes = segment.explicit, segment.attributes
            tiler._inferred = tiler._inferred or one.stage == INFERENCE
            tiler._keep(one)
        if tiler._segments:
            tiler._segments[-1].end = max(now, tiler._segments[-1].start)  # it is open
        tiler._name_rest()
        return totals_of(tiler._segments)

    def close(self, now: int, start: int, end: int, *, is_unsorted: bool) -> Stages:
        """Return the stages that tile [start, end) to the nanosecond; none if that interval is empty.

        `is_unsorted`: some marks were reported later, so that the first inference in time may not be the first mark.
        """
        current = self._open
        if current.stage == GAP and now - current.start < WIRE_OVERHEAD_NS and self._goes_on(NETWORK_SEND, current):
            current = self._reopen()
        current.end = max(now, current.start)
        self._keep(current)
        self._name_rest()
        tiles = _tiles(self._segments, start, end)
        first = next((one.attributes for one in tiles if one.stage == INFERENCE and one.attributes), self._model)
        return Stages(tiles, first if is_unsorted else self._model)

    def take(self, events: Iterable[Event]) -> None:  # noqa: C901, PLR0912, PLR0915 -- one loop: each request pays for it, calls double it
        """Turn events, in the order in which they were noted, into stages."""
        counts, marks = self._counts, self._marks
        current, active = self._open, self._active
        stage, since = current.stage, current.start
        for now, event, what, attributes in events:
            before = stage
            if event == BEGIN:
                counts[what] += 1
                active += 1
                stage = what if active == 1 and not marks else self._stage()
            elif event == END:
                if not counts[what]:
                    continue
                counts[what] -= 1
                active -= 1
                stage = self._stage() if active or marks else GAP
            else:
                if event == BEGIN_MARK:
                    marks.append(what)
                elif marks and marks[-1] is what:
                    marks.pop()
                elif what in marks:
                    marks.remove(what)
                stage = self._stage()
            if stage != before or ((marks or current.explicit) and bool(marks) is not current.explicit):
                if now <= since:  # at once, or the wall clock stepped back
                    now = since  # noqa: PLW2901
                    keep = current.context is not None
                elif (
                    now - since < WIRE_OVERHEAD_NS
                    and before == GAP
                    and stage in _WIRE
                    and self._goes_on(stage, current)
                ):
                    current = self._reopen()
                    since = current.start
                    continue
                else:
                    keep = True
                if keep:
                    current.end = now
                    self._keep(current)
                current = Segment(stage, now)
                since = now
                if marks:
                    current.explicit = True
                if stage == INFERENCE:
                    self._inferred = True
                    self._name_pending(PREPROCESS)
                elif stage == POSTPROCESS and self._inferred and not marks:
                    self._name_pending(POSTPROCESS)
            if event == BEGIN_MARK and (what.context or what.link) is not None:
                current.context = current.context or what.context
                current.link = what.link
            if attributes:
                if event == BEGIN_MARK or stage == what:
                    current.attributes = {**attributes, **current.attributes} if current.attributes else attributes
                if INFERENCE in (what, stage):
                    self._take_model(event, what, attributes)
        self._open, self._active = current, active

    def _take_model(self, event: int, what: Any, attributes: Mapping[str, Any]) -> None:
        """Take what an event says of the model: an inference, or a mark within one."""
        if what == INFERENCE:
            if not self._model:
                self._model = attributes
            elif self._marks and self._marks[-1] is self._modelled:  # the inferred model completes the marked one
                self._model = {**attributes, **self._model}
        elif event == BEGIN_MARK and not self._model:
            self._model = {key: attributes[key] for key in OF_MODEL if key in attributes}
            self._modelled = what if self._model else None

    def _keep(self, segment: Segment) -> None:
        """Add a segment that has ended."""
        self._segments.append(segment)
        if segment.context is not None:
            self._given += 1
        if _is_unnamed(segment):
            self._pending.append(segment)

    def shorten(self, cuts: Sequence[int]) -> None:
        """Sum short visits, if there are more than are sent of a request; none across the times in `cuts`."""
        segments = self._segments
        if len(segments) >= self._shorten_at:
            segments[:] = coalesced(segments, cuts, min(self._limit - 1, MAX_SEGMENTS))
            self._pending[:] = filter(_is_unnamed, segments)
            self._shorten_at = max(self._limit, 2 * len(segments))

    def _stage(self) -> str:
        """Return the stage that the open activities and marks make."""
        if self._marks:
            return self._marks[-1].stage
        for activity in PRIORITY:
            if self._counts[activity]:
                return activity
        return GAP

    def _goes_on(self, stage: str, gap: Segment) -> bool:
        """Return whether what lies before a short gap is the same moving of a body over the wire."""
        before = self._segments[-1] if self._segments else None
        return (
            before is not None
            and before.stage == stage
            and gap.context is None
            and not before.coalesced
            and not before.explicit
        )

    def _reopen(self) -> Segment:
        """Reopen and return the segment that was closed last."""
        segment = self._segments.pop()
        if segment.context is not None:
            self._given -= 1
        return segment

    def _name_pending(self, name: str, attributes: Mapping[str, Any] = NOTHING) -> None:
        for segment in self._pending:
            segment.stage = name
            segment.attributes = attributes
        self._pending.clear()

    def _name_rest(self) -> None:
        """Name what no later inference will settle.

        A transform is the inference, unless a longer time without marks follows it: that may have been a model that
        was not recognised.
        """
        if self._inferred:
            self._name_pending(POSTPROCESS)
            return
        is_transformed = False
        unmarked = 0
        name = POSTPROCESS
        model: Mapping[str, Any] = NOTHING
        for segment in reversed(self._pending):
            took = segment.end - segment.start
            if segment.stage == GAP:
                unmarked += took
            else:
                is_transformed = True
            if segment.stage == TRANSFORM and took >= unmarked:
                segment.stage, name, model = INFERENCE, PREPROCESS, segment.attributes or model
            else:
                segment.stage, segment.attributes = name, NOTHING
        if name == POSTPROCESS:
            model = UNRECOGNISED if is_transformed and not self._model else NOTHING
            self._name_pending(HANDLER, model)
        self._model = self._model or model
        self._pending.clear()


def _is_unnamed(segment: Segment) -> bool:
    """Return whether a segment is a gap or a transform that a later event names."""
    return segment.stage == GAP or (segment.stage in TRANSFORMS and not segment.explicit)


def _tiles(segments: list[Segment], start: int, end: int) -> list[Segment]:
    """Return the segments, which are end to end already, cut and stretched to [start, end).

    Neighbours of one inferred stage become one, unless both already have children.
    """
    if end <= start:
        return []
    tiles: list[Segment] = []
    last = None
    at = start
    for segment in segments:
        until = segment.end
        if until > end:  # noqa: PLR1730 -- a third of the time of min()
            until = end
        if until <= at:
            until = at
            if segment.context is None:
                continue
        if (
            last is not None
            and last.stage == segment.stage
            and not last.coalesced
            and not segment.coalesced
            and not last.explicit
            and not segment.explicit
            and not (last.context and segment.context)
        ):
            last.context = last.context or segment.context
            last.attributes = last.attributes or segment.attributes
        else:
            last = segment
            last.start = at
            tiles.append(last)
        last.end = at = until
    if last is None:
        last = Segment(HANDLER, start)
        tiles.append(last)
    last.end = end
    return tiles
