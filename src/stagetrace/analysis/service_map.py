"""Which service waits for which, by the calls that are stored: pure, but for the reduction that it asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace.analysis.base import Source

MOST: Final = 60  # calls, by caller and callee
_TRACES: Final = 20_000  # about as many are looked at


class Call(NamedTuple):
    """The calls of one caller to one callee; `is_service`: whether requests of the callee are stored."""

    caller: str
    callee: str
    is_service: bool
    calls: float
    took_ms: float
    of_breaches: float  # of requests of the caller that are breaches

    @property
    def mean_ms(self) -> float:
        """Return how long one takes."""
        return self.took_ms / self.calls


@dataclass(frozen=True)
class ServiceMap:
    """The calls, those that took most time in all first, and a column for each name: callers before their callees."""

    calls: Sequence[Call]
    columns: Sequence[Sequence[str]]
    one_in: int  # so many traces one was looked at


def ask(source: Source, stored: int) -> ServiceMap:
    """Return the map of a source of so many requests."""
    one_in = max(1, stored // _TRACES)
    return of_rows(source.reduce("calls", one_in=one_in, most=MOST), one_in)


def of_rows(rows: Iterable[Mapping[str, Any]], one_in: int = 1) -> ServiceMap:
    """Return the map out of the rows of the reduction. A name that is called in a circle stands behind its callers."""
    calls = [Call(**row) for row in rows]
    names = list(dict.fromkeys(name for one in calls for name in (one.caller, one.callee)))
    depth = dict.fromkeys(names, 0)
    for _ in names:  # the longest way has as many steps as there are names, unless it is a circle
        before = dict(depth)
        for one in calls:
            if one.caller != one.callee and depth[one.caller] + 1 < len(names):
                depth[one.callee] = max(depth[one.callee], depth[one.caller] + 1)
        if depth == before:
            break
    levels = sorted(set(depth.values()))
    return ServiceMap(calls, [[name for name in names if depth[name] == level] for level in levels], one_in)
