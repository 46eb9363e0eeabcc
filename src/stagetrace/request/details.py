"""Library calls inside the stages of one request: detail spans, one a kind within each visit to a stage.

A call is only noted. Its stage is worked out as the request ends, from the time at which it began: details
change no stage, and those of a request that is not sent cost no ids.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

from stagetrace.guard import guarded
from stagetrace.request.spans import child
from stagetrace.semconv import DETAIL_CALLS, DETAIL_FAILED, DETAIL_LIBRARY, DETAIL_TIME_MS, STAGETRACE_DROPPED_DETAILS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.request.request import Request
    from stagetrace.request.stages import Segment, Stages
    from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    # Calls of one kind: first begin, last end, how many they are, the sum of their times (ns), how many raised.
    Calls = tuple[int, int, int, int, int]
    Kind = tuple[str, str]  # name of the span, name of the library
    Found = tuple[Kind, Calls, Mapping[str, Any] | None]  # the attributes of a call that is a span of its own
    Report = tuple[Sequence[Found], int]  # and how many were left out

MAX_KINDS = 32
MAX_SPANS = 64
MAX_NOTED = 256  # calls of one kind; then those within one visit to a stage are summed
_FIRST, _LAST, _COUNT, _SUM, _FAILED = range(5)
_FOREVER = 1 << 62


class Detail(NamedTuple):
    """One detail span; `parent` is the stage in which it began. Times in nanoseconds since the epoch."""

    name: str
    parent: SpanContext
    start: int
    end: int
    attributes: Mapping[str, Any]


class Details:
    """The calls of one request. Any thread may add to them."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, list[Calls]] = {}
        self._single: list[Found] = []
        self._lock = threading.Lock()  # guards that calls are replaced by their sums
        self._left_out = 0

    def add(self, request: Request, kind: Kind, calls: Calls) -> None:
        """Note calls of a kind that have ended; of more than 32 kinds only the number of calls is kept."""
        noted = self._kinds.get(kind)
        if noted is None:
            if len(self._kinds) >= MAX_KINDS:
                self._left_out += 1
                return
            noted = self._kinds.setdefault(kind, [])
        noted.append(calls)
        if len(noted) >= MAX_NOTED:
            self._sum_up(noted, _starts(request.so_far()))

    def add_single(self, name: str, start: int, end: int, attributes: Mapping[str, Any]) -> None:
        """Note one call that is a span of its own."""
        if len(self._single) < MAX_SPANS:
            self._single.append(((name, ""), (start, end, 1, end - start, 0), dict(attributes)))
        else:
            self._left_out += 1

    def _sum_up(self, noted: list[Calls], starts: Sequence[int]) -> None:
        with self._lock:
            taken = noted[:]
            del noted[: len(taken)]  # others may append meanwhile
            few = [calls for _, calls in _by_visit(taken, starts)]
            if len(few) > MAX_NOTED // 2:
                few.sort(key=_summed, reverse=True)
                self._left_out += len(few) - MAX_NOTED // 2
                del few[MAX_NOTED // 2 :]
            noted[:0] = few

    def grouped(self, starts: Sequence[int]) -> tuple[list[tuple[int, Found]], int]:
        """Return the details, each with the number of its visit, and how many were left out: the shortest.

        `starts` are the times at which visits to stages begin.
        """
        found: list[tuple[int, Found]] = [(_visit(starts, one[1][_FIRST]), one) for one in self._single[:]]
        for kind, noted in list(self._kinds.items()):
            found += [(visit, (kind, calls, None)) for visit, calls in _by_visit(noted[:], starts)]
        over = max(len(found) - MAX_SPANS, 0)
        if over:
            found.sort(key=lambda one: one[1][1][_SUM], reverse=True)
            del found[MAX_SPANS:]
        return found, self._left_out + over

    def report(self, stages: Stages) -> Report:
        """Return the details as JSON holds them, for the process that has the request."""
        found, left_out = self.grouped(_starts(stages.segments()))
        return [one for _, one in found], left_out

    def take(self, request: Request, report: Report) -> None:
        """Add what another process has reported."""
        found, left_out = report
        for (name, library), (first, last, count, summed, failed), attributes in found:
            if attributes is None:
                self.add(request, (name, library), (first, last, count, summed, failed))
            else:
                self.add_single(name, first, last, attributes)
        self._left_out += left_out


def details_of(request: Request) -> Details:
    """Return the details of a request, made when it has its first one."""
    details: Details | None = request.details
    if details is None:
        with request.lock:
            details = request.details
            if details is None:
                details = request.details = Details()
    return details


@guarded
def _placed(request: Request, stages: Stages, entry: SpanContext) -> list[Detail]:
    details = request.details
    if details is None:
        return []
    segments = stages.segments()
    found, left_out = details.grouped(_starts(segments))
    if left_out:
        stages.model = {**stages.model, STAGETRACE_DROPPED_DETAILS: left_out}
    placed = []
    for visit, ((name, library), calls, attributes) in found:
        parent = entry
        if segments and not segments[visit].coalesced:  # else what was in which of its visits is not known
            parent = segments[visit].context or child(entry)
            if segments[visit].context is None:
                segments[visit].context = parent
                stages.give_context(visit, parent)
        known = _attributes(library, calls) if attributes is None else attributes
        placed.append(Detail(name, parent, calls[_FIRST], calls[_LAST], known))
    placed.sort(key=lambda one: one.start)
    return placed


def placed_details(request: Request | None, stages: Stages, entry: SpanContext) -> list[Detail]:
    """Return the details of a request that has ended, each under its stage; `entry` is its entry span's context.

    A stage that gets a child has a context from then on. Never raises.
    """
    if request is None or request.details is None:
        return []
    return _placed(request, stages, entry) or []


@guarded
def take_details(request: Request, report: Report) -> None:
    """Add to a request what another process has reported."""
    details_of(request).take(request, report)


@guarded
def _within(batch: Request, inferences: Sequence[Segment], entry: SpanContext) -> list[Detail]:
    if batch.details is None:
        return []
    found, _ = batch.details.grouped([0, inferences[0].start, inferences[-1].end])  # before it, it, after it
    return [
        Detail(name, entry, calls[_FIRST], calls[_LAST], _attributes(library, calls) if given is None else given)
        for visit, ((name, library), calls, given) in found
        if visit == 1
    ]


def details_within(batch: Request, inferences: Sequence[Segment], entry: SpanContext) -> list[Detail]:
    """Return the details of a batch's one inference, whose context is `entry`. Never raises."""
    return _within(batch, inferences, entry) or []


def _starts(segments: Iterable[Any]) -> list[int]:
    return [segment.start for segment in segments]


def _visit(starts: Sequence[int], began: int) -> int:
    """Return the number of the visit in which a call began; the first one also has those that began before it."""
    return max(bisect_right(starts, began) - 1, 0)


def _summed(calls: Calls) -> int:
    return calls[_SUM]


def _by_visit(noted: Iterable[Calls], starts: Sequence[int]) -> list[tuple[int, Calls]]:
    """Return calls of one kind, those that began in one visit as one."""
    few: dict[int, list[int]] = {}
    group: list[int] = []
    since, until = 1, 0  # of the visit that the group is of: nothing began in it yet
    for first, last, count, summed, failed in noted:
        if not since <= first < until:
            visit = _visit(starts, first)
            since = starts[visit] if visit else 0
            until = starts[visit + 1] if visit + 1 < len(starts) else _FOREVER
            group = few.setdefault(visit, [first, last, 0, 0, 0])
        group[_FIRST] = min(group[_FIRST], first)
        group[_LAST] = max(group[_LAST], last)
        group[_COUNT] += count
        group[_SUM] += summed
        group[_FAILED] += failed
    return [(visit, (one[0], one[1], one[2], one[3], one[4])) for visit, one in few.items()]


def _attributes(library: str, calls: Calls) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {DETAIL_CALLS: calls[_COUNT], DETAIL_TIME_MS: calls[_SUM] / 1e6}
    if library:
        attributes[DETAIL_LIBRARY] = library
    if calls[_FAILED]:
        attributes[DETAIL_FAILED] = calls[_FAILED]
    return attributes
