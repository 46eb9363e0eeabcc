"""How many requests were judged, and how long they took, by objective and verdict: exact under any sampling."""

from __future__ import annotations

import math
from bisect import insort
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import log
from stagetrace.policy.objective import BREACH, EXCLUDED
from stagetrace.request.request import NO_STAGES
from stagetrace.system.native import native
from stagetrace.system.threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.policy.policy import Policy
    from stagetrace.request.stages import Stages
    from stagetrace.tracing.span_context import SpanContext

MAX_ROUTES_SHOWN: Final = 5
MAX_POINTS: Final = 2_000  # of each metric, as OpenTelemetry's SDKs have by default; what exceeds them is one point


class Counted(NamedTuple):
    """The key of a judged request: the attributes of the metric `sla.requests`, empty where there is none."""

    objective: str
    verdict: str
    route: str = ""  # of an RPC its method
    stage: str = ""  # of a breach
    segment: str = ""
    overflow: bool = False  # whether it stands for what exceeds MAX_POINTS


class Timed(NamedTuple):
    """The key of a duration: `of` is a verdict or a stage; both are empty for what exceeds MAX_POINTS."""

    objective: str
    of: str


OVERFLOW: Final = Timed("", "")


class VerdictCounter:
    """Exact count of judged requests by objective and verdict, taken before any sampling, and how long they took."""

    def __init__(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        """Count from 0 on: as it is made, and in a forked child, where another thread may have held the lock."""
        self._lock = allocate_lock()  # guards all below, but what is in a Series or a Histogram
        self.since_ns = time_ns()
        self._series: dict[tuple[str, str, str, str | None, str | None], Any] = {}
        self._overflowing: dict[Counted, Any] = {}  # series, too, of objective and verdict
        self._durations: dict[Timed, Any] = {}
        self._stages: dict[str, dict[str, Any]] = {}  # by objective and stage
        self._stage_count = 0
        self._stage_overflow: Any = None
        self._causes: dict[tuple[str, str], int] = {}
        self._segment_overflow: dict[str, int] = {}
        self._unusable_deadlines: dict[str, int] = {}
        self.unmatched = 0
        self._routes: dict[str, None] = {}  # of unmatched requests, the first few

    def add(
        self,
        objective: str,
        verdict: str,
        route: str = "",
        stage: str | None = None,
        segment: str | None = None,
        duration_ns: int | None = None,
        stages: Stages = NO_STAGES,
        trace: SpanContext | None = None,
    ) -> None:
        """Count one judged request, and how long it and its stages took.

        `stage` is the culprit of a breach. `trace` is the context of an entry span that is kept; None for one that the
        head sampler drops, or that cannot be sent.
        """
        series = self._series.get((objective, verdict, route, stage, segment))
        if series is None:
            series = self._new_series(objective, verdict, route, stage, segment)
        missing = series.add(duration_ns, stages, trace)
        if missing:
            for name, took_ns in missing.items():
                self._histogram_of_stage(objective, name).add(took_ns, trace, verdict == BREACH)

    def _new_series(self, objective: str, verdict: str, route: str, stage: str | None, segment: str | None) -> Any:
        key = (objective, verdict, route, stage, segment)
        with self._lock:
            if (found := self._series.get(key)) is not None:
                return found
            if len(self._series) < MAX_POINTS:
                made = self._series[key] = self._make_series(objective, verdict)
                return made
            beyond = Counted(objective, verdict, overflow=True)
            if beyond not in self._overflowing:
                self._overflowing[beyond] = self._make_series(objective, verdict)
            return self._overflowing[beyond]

    def _make_series(self, objective: str, verdict: str) -> Any:
        if verdict == EXCLUDED:  # no metric has their durations
            return Series(None, None, False)  # noqa: FBT003 -- of C, takes no names
        key = Timed(objective, verdict)
        if key not in self._durations and len(self._durations) >= MAX_POINTS:
            key = OVERFLOW
        whole = self._durations.get(key)
        if whole is None:
            whole = self._durations[key] = Histogram()
        return Series(whole, self._stages.setdefault(objective, {}), verdict == BREACH)

    def _histogram_of_stage(self, objective: str, stage: str) -> Any:
        with self._lock:
            of_objective = self._stages.setdefault(objective, {})
            found = of_objective.get(stage)
            if found is None and self._stage_count < MAX_POINTS:
                self._stage_count += 1
                found = of_objective[stage] = Histogram()
            elif found is None:
                found = self._stage_overflow = self._stage_overflow or Histogram()
            return found

    def add_segment_overflow(self, objective: str) -> None:
        """Count one request that belongs to the segment `other`, since its objective has as many as it may."""
        with self._lock:
            self._segment_overflow[objective] = self._segment_overflow.get(objective, 0) + 1

    def segment_overflow(self) -> dict[str, int]:
        """Return the number of requests in the segment `other` by objective."""
        with self._lock:
            return dict(self._segment_overflow)

    def add_unusable_deadline(self, source: str) -> None:
        """Count one request whose deadline, in a header of this name, is no usable time."""
        with self._lock:
            self._unusable_deadlines[source] = self._unusable_deadlines.get(source, 0) + 1

    def unusable_deadlines(self) -> dict[str, int]:
        """Return the number of such requests by the name of the header."""
        with self._lock:
            return dict(self._unusable_deadlines)

    def add_cause(self, objective: str, cause: str) -> None:
        """Count one breach, which `add` has counted too, by its cause."""
        with self._lock:
            self._causes[objective, cause] = self._causes.get((objective, cause), 0) + 1

    def add_unmatched(self, label: str) -> None:
        """Count one request that no objective judges; `label` is its method and route."""
        with self._lock:
            self.unmatched += 1
            if len(self._routes) < MAX_ROUTES_SHOWN:
                self._routes[label] = None

    @property
    def has_counted(self) -> bool:
        """Whether a request has ended here, judged or not."""
        return bool(self._series) or self.unmatched > 0

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of requests by (objective, verdict)."""
        counts: dict[tuple[str, str], int] = {}
        for key, count in self.points().items():
            counts[key[:2]] = counts.get(key[:2], 0) + count
        return counts

    def points(self) -> dict[Counted, int]:
        """Return the number of requests by all that they are counted by."""
        with self._lock:
            found = [
                (Counted(objective, verdict, route, stage or "", segment or ""), series)
                for (objective, verdict, route, stage, segment), series in self._series.items()
            ]
            found += self._overflowing.items()
        counts: dict[Counted, int] = {}
        for key, series in found:  # None and "" are the same attribute
            counts[key] = counts.get(key, 0) + series.count
        return counts

    def durations(self) -> dict[Timed, Collected]:
        """Return how long requests took by objective and verdict, with exemplars."""
        with self._lock:
            found = list(self._durations.items())
        return {key: Collected(*histogram.collect()) for key, histogram in found}

    def stage_durations(self) -> dict[Timed, Collected]:
        """Return how long stages took by objective and stage, with exemplars."""
        with self._lock:
            found = [
                (Timed(objective, stage), histogram)
                for objective, of_objective in self._stages.items()
                for stage, histogram in of_objective.items()
            ]
            if self._stage_overflow is not None:
                found.append((OVERFLOW, self._stage_overflow))
        return {key: Collected(*histogram.collect()) for key, histogram in found}

    def causes(self) -> dict[tuple[str, str], int]:
        """Return the number of breaches by (objective, cause)."""
        with self._lock:
            return dict(self._causes)

    def say_unmatched(self, policy: Policy) -> None:
        """Warn, once, if requests were received and the policy judged none of them."""
        with self._lock:
            if self._series or not self.unmatched:
                return
            rules = "; ".join(objective.name for objective in policy.objectives)
            message = (
                f"STAGETRACE_SLA {rules!r} matched none of {self.unmatched} requests: nothing is judged.\n"
                f"They were {', '.join(self._routes)}. Use such a method and route, or `*` for all."
            )
            if policy.problems:
                message += f"\nRules that cannot be read match what they are about: {'; '.join(policy.problems)}."
        log.once("policy matches nothing", message)


# --- Exponential histograms of how long requests and their stages took: in C where a compiler was there.
#
# They are those of OpenTelemetry's metrics data model: bucket i of scale s is for values in (2^(i/2^s), 2^((i+1)/2^s)].
# An histogram begins with the finest scale, and merges buckets in pairs whenever it would need more than MAX_BUCKETS.

MAX_BUCKETS: Final = 160  # OpenTelemetry's default
MAX_SCALE: Final = 20
EXEMPLARS: Final = 4  # of one histogram


class Collected(NamedTuple):
    """What a histogram holds, in seconds; `least` and `most` are 0 where it is empty.

    `exemplars`: of each its time in nanoseconds, when it was added, and its trace.
    """

    number: int
    zeros: int
    sum: float
    least: float
    most: float
    scale: int
    first: int  # index of the first bucket
    buckets: list[int]
    exemplars: list[tuple[int, int, Any]]


class _Histogram:
    """An exponential histogram of times. Any thread may add to it."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards all below
        self._count = self._zeros = 0
        self._sum = self._least = self._most = 0.0
        self._scale = MAX_SCALE
        self._buckets: dict[int, int] = {}
        self._first, self._last = 0, -1  # indices of the first and the last bucket
        self._exemplars: list[
            tuple[bool, bool, int, int, Any]
        ] = []  # of each first whether it is new, and preferred; the lowest first

    def add(self, took_ns: int, trace: Any, is_preferred: bool) -> None:
        """Add a time. Its `trace`, unless it is None, becomes an exemplar in place of one that is below it.

        Below are those that were collected before, then those that are not preferred, then the shortest.
        """
        value = took_ns / 1e9 if took_ns > 0 else 0.0
        with self._lock:
            self._least = min(self._least, value) if self._count else value
            self._most = max(self._most, value)
            self._count += 1
            self._sum += value
            if value:
                self._put(value)
            else:
                self._zeros += 1
            if trace is not None:
                self._keep(is_preferred, took_ns, trace)

    def _put(self, value: float) -> None:
        while True:
            at = index_of(value, self._scale)
            low, high = (min(at, self._first), max(at, self._last)) if self._buckets else (at, at)
            if high - low < MAX_BUCKETS:
                break
            by = 0
            while (high >> by) - (low >> by) >= MAX_BUCKETS:
                by += 1
            merged: dict[int, int] = {}
            for index, count in self._buckets.items():
                merged[index >> by] = merged.get(index >> by, 0) + count
            self._buckets, self._scale = merged, self._scale - by
            self._first, self._last = self._first >> by, self._last >> by
        self._first, self._last = low, high
        self._buckets[at] = self._buckets.get(at, 0) + 1

    def _keep(self, is_preferred: bool, took_ns: int, trace: Any) -> None:
        kept, rank = self._exemplars, (True, is_preferred, took_ns)
        if len(kept) == EXEMPLARS:
            if kept[0][:3] >= rank:
                return
            del kept[0]
        insort(kept, (*rank, time_ns(), trace), key=_rank)

    def collect(self) -> tuple[Any, ...]:
        """Return what was added, in the order of `Collected`, and its exemplars, which new ones may replace."""
        with self._lock:
            exemplars = [one[2:] for one in self._exemplars]
            self._exemplars = sorted([(False, *one[1:]) for one in self._exemplars], key=_rank)
            buckets = [self._buckets.get(at, 0) for at in range(self._first, self._last + 1)]
            sums = (self._sum, self._least, self._most)
            return (self._count, self._zeros, *sums, self._scale, self._first, buckets, exemplars)


def _rank(exemplar: tuple[Any, ...]) -> tuple[Any, ...]:
    return exemplar[:3]


class _Series:
    """Requests that are counted together, and the histograms for the whole of each, and for its stages."""

    def __init__(self, whole: Any, by_stage: Mapping[str, Any] | None, is_preferred: bool) -> None:
        self._lock = allocate_lock()  # guards `count`
        self.count = 0
        self._whole = whole
        self._by_stage = by_stage
        self._is_preferred = is_preferred

    def add(self, took_ns: int | None, stages: Stages, trace: Any) -> dict[str, int] | None:
        """Add one request; return the times of those stages for which there is no histogram."""
        with self._lock:
            self.count += 1
        if self._whole is None or self._by_stage is None or took_ns is None:
            return None
        self._whole.add(took_ns, trace, self._is_preferred)
        missing = {}
        for stage, total_ns in stages.totals().items():
            histogram = self._by_stage.get(stage)
            if histogram is None:
                missing[stage] = total_ns
            else:
                histogram.add(total_ns, trace, self._is_preferred)
        return missing or None


def index_of(value: float, scale: int) -> int:
    """Return the index of the bucket that a number of seconds belongs to, at a scale from 1 on."""
    mantissa, exponent = math.frexp(value)
    if mantissa == 0.5:  # noqa: PLR2004 -- a power of two is the upper bound of its bucket
        return ((exponent - 1) << scale) - 1
    return math.floor(math.log(value) * math.ldexp(1 / math.log(2), scale))


_in_c = native("marks") and native("histograms")
NATIVE: Final = _in_c is not None
Histogram: Any = _Histogram if _in_c is None else _in_c.Histogram
Series: Any = _Series if _in_c is None else _in_c.Series
