"""Exponential histograms of how long requests and their stages took: in C where a compiler was there.

They are those of OpenTelemetry's metrics data model: bucket i of scale s is for values in (2^(i/2^s), 2^((i+1)/2^s)].
An histogram begins with the finest scale, and merges buckets in pairs whenever it would need more than MAX_BUCKETS.
"""

from __future__ import annotations

import math
from bisect import insort
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.native import native
from stagetrace.real_threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.recording.stages import Stages

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
