"""The stages of one request: each visit to one, and how many visits become few spans.

A stream of 500 chunks waits 500 times and sends 500 times. Such visits are summed by stage and laid end to end in the
place of all of them: sums by stage stay exact, and so does the tiling; the order within is lost, and a span that
stands for several visits says how many they were. One span over the whole stream would belong to one stage and contain
another's time: every reader that adds up spans would be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.semconv import (
    ML_STAGE_COALESCED,
    ML_STAGE_COALESCED_LONGEST_MS,
    NETWORK_RECEIVE,
    NETWORK_SEND,
    PREPARE,
    TRANSFORM,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.tracing.span_context import SpanContext

GAP = ""
TRANSFORMS = (TRANSFORM, PREPARE)
UNNAMED = (GAP, *TRANSFORMS)
OTHER = "other"
NOTHING: dict[str, Any] = {}  # shared, and never written to
MAX_SEGMENTS = 128
# With more visits than this a request waits and sends in turn: its sends, or receives, are no spans of their own.
MAX_WIRE = 8
# A visit that takes this part of the request or more is a span of its own, however many there are.
SHARE = 10
# What comes before the first of these sends stays as it is, unless it is more than this.
MAX_BEFORE = 32
MAX_STAGE_NAMES = 32


class Segment:
    """One visit to one stage: [start, end) in nanoseconds since the epoch."""

    # Most segments keep these, so they are the class's: a request makes a dozen segments as it ends.
    attributes: Mapping[str, Any] = NOTHING
    context: SpanContext | None = None  # given out as a parent: this segment must become a span of its own
    explicit = False
    coalesced = 0  # the number of visits that it stands for, where they lie elsewhere in time
    longest = 0  # of these, in nanoseconds
    link: SpanContext | None = None  # of a batch's inference, which this was one request's part of

    def __init__(self, stage: str, start: int) -> None:
        self.stage = stage
        self.start = start
        self.end = start

    def visits(self) -> dict[str, Any]:
        """Return what its span says of the visits that it stands for."""
        return {ML_STAGE_COALESCED: self.coalesced, ML_STAGE_COALESCED_LONGEST_MS: self.longest / 1e6}


def totals_of(segments: Iterable[Segment]) -> dict[str, int]:
    """Return the nanoseconds by stage, in order of first appearance."""
    totals: dict[str, int] = {}
    for segment in segments:
        stage = segment.stage
        totals[stage] = totals.get(stage, 0) + segment.end - segment.start
    return totals


def coalesced(segments: list[Segment], cuts: Sequence[int] = (), limit: int = MAX_SEGMENTS) -> list[Segment]:
    """Return the segments, which lie end to end, as few: short visits of a stream, or of more than `limit`, are summed.

    Nothing is moved across the times in `cuts`, which are sorted: what lies before a stream's first chunk, or within
    its longest gap, stays there. A segment with a context or a link, and a long one, stays as it is.
    """
    count = len(segments)
    if count <= MAX_WIRE and count <= limit:
        return segments
    first = _first_chunk(segments)
    if first is None and count <= limit:
        return segments
    if first is None or first >= MAX_BEFORE < limit < count:
        first = 0
    long_ns = (segments[-1].end - segments[0].start) // SHARE
    names = None if count <= limit else NOTHING.copy()
    few = segments[:first] + _summed(segments[first:], cuts, max(long_ns, 1), names)
    if len(few) > limit < count:
        few = _summed(few, (), None, names)
    return few


def _first_chunk(segments: list[Segment]) -> int | None:
    """Return where a request begins to wait and to send, or receive, in turn; None if it does not."""
    stages = [segment.stage for segment in segments]
    for stage in (NETWORK_SEND, NETWORK_RECEIVE):
        visits = stages.count(stage)
        if visits > MAX_WIRE or (visits and any(one.coalesced and one.stage == stage for one in segments)):
            return stages.index(stage)
    return None


def _summed(
    segments: list[Segment], cuts: Sequence[int], long_ns: int | None, names: dict[str, Any] | None
) -> list[Segment]:
    """Return the segments, each run of those that may be summed as one segment for each of its stages.

    `long_ns`: from then on a visit stays as it is; None: however long. `names` are the stages summed until now, None
    where they are not limited.
    """
    few: list[Segment] = []
    run: list[Segment] = []
    ahead = [*cuts, 0]
    cut = ahead[0]
    at = 0
    for segment in segments:
        start, end = segment.start, segment.end
        if cut:
            while cut and start >= cut:
                at += 1
                cut = ahead[at]
                few += _by_stage(run, names)
                run = []
        if (
            (long_ns is None or end - start < long_ns or segment.coalesced)
            and segment.context is None
            and segment.link is None
            and not start < cut < end
        ):
            run.append(segment)
        else:
            few += _by_stage(run, names)
            run = []
            few.append(segment)
    return few + _by_stage(run, names)


def _by_stage(run: list[Segment], names: dict[str, Any] | None) -> list[Segment]:  # noqa: C901 -- one loop for speed
    """Return one segment for each stage of the run, end to end; the run itself where it has no stage twice."""
    if len(run) < 2:  # noqa: PLR2004 -- none of them twice
        return run
    inferred: dict[str, Segment] = {}
    by_hand: dict[str, Segment] = {}
    groups: list[Segment] = []
    for segment in run:
        stage, took, visits = segment.stage, segment.end - segment.start, segment.coalesced
        if names is not None and stage not in names:
            stage = _named(stage, names)
        of_kind = by_hand if segment.explicit else inferred
        group = of_kind.get(stage)
        if group is None:
            group = of_kind[stage] = Segment(stage, 0)
            groups.append(group)
            if segment.explicit:
                group.explicit = True
            group.attributes = segment.attributes if stage == segment.stage else NOTHING
            group.coalesced, group.longest, group.end = visits or 1, segment.longest or took, took
            continue
        group.end += took  # its length, until it is laid in its place
        group.coalesced += visits or 1
        if took > group.longest:
            group.longest = max(group.longest, segment.longest if visits else took)
        if group.attributes is not segment.attributes:
            group.attributes = common(group.attributes, segment.attributes)
    if len(groups) == len(run):
        return run
    if GAP in inferred and not inferred.keys().isdisjoint(TRANSFORMS):
        groups.remove(inferred[GAP])
        groups.append(inferred[GAP])  # last: all of it may be a model that follows on a transform
    at = run[0].start
    for group in groups:
        group.start = at
        at = group.end = at + group.end
    return groups


def _named(stage: str, names: dict[str, Any]) -> str:
    """Return under which name a stage is summed, of which there are only so many."""
    if len(names) >= MAX_STAGE_NAMES:
        return OTHER
    names[stage] = None
    return stage


def common(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the attributes that both have with the same value."""
    if not one or not other:
        return NOTHING
    found = {key: value for key, value in one.items() if key in other and _alike(other[key], value)}
    return found or NOTHING


def _alike(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


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
