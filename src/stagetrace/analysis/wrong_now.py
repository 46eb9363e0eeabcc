"""What is wrong now: outcomes over time, the objective that is missed by most, its main stage and cause, since when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace.analysis.attainment import KEYS, Counts, Target, attained, counts, is_missed, target_of
from stagetrace.analysis.base import Source, by_keys
from stagetrace.analysis.estimates import Attainment

REDUCTION: Final = "outcomes_over_time"
OBJECTIVES: Final = 100  # those with most breaches are told apart
KINDS: Final = 50  # stages with causes, likewise
BUCKETS: Final = 60
_S: Final = 10**9
_WIDTHS_S: Final = (
    *(1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 3 * 3600, 6 * 3600, 12 * 3600),
    *(days * 86_400 for days in (1, 2, 7, 14, 30, 90, 365, 3650)),
)
# A bucket is bad with so many breaches that are so large a share; bad ones so far apart are one stretch.
_LEAST: Final = 2
_BURN: Final = 10.0
_MOST_SHARE: Final = 0.5
_GAP_NS: Final = 300 * _S


class Kind(NamedTuple):
    """Stage and cause of breaches, by their verdicts; `is_rest`: all that are not told apart."""

    stage: str | None
    cause: str | None
    is_rest: bool = False


class Loss(NamedTuple):
    """How many breaches are of one kind, and by how much they were over what was allowed, in all."""

    kind: Kind
    breaches: int
    over_ms: float


class Stretch(NamedTuple):
    """Time with breaches, from the first of them to the last; `is_over` where that is a while ago."""

    first_unix_nano: int
    last_unix_nano: int
    breaches: int
    is_over: bool


@dataclass(frozen=True)
class Line:
    """How one objective of a service and route did in the window; the losses with most breaches first."""

    service: str
    route: str
    objective: str | None
    target: Target
    counts: Counts
    attained: Attainment | None
    missed: bool | None
    losses: tuple[Loss, ...]
    all_breaches: Stretch | None  # from the first one in the window to the last
    latest: Stretch | None  # the latest one with too many breaches

    @property
    def excess(self) -> float:
        """Return how many breaches there were beyond those that the objective allows."""
        return self.counts.breaches - self.target.budget * self.counts.judged


@dataclass(frozen=True)
class Found:
    """The outcomes; lists of numbers have one for each bucket of time from `since_unix_nano` on."""

    since_unix_nano: int
    width_ns: int
    requests: tuple[float, ...]
    breaches: tuple[int, ...]
    kinds: Mapping[Kind, tuple[int, ...]]  # breaches
    losses: tuple[Loss, ...]  # most time first
    lines: tuple[Line, ...]  # the one with the most breaches beyond what is allowed first
    counts: Counts
    has_rest: bool  # whether objectives are left that are not among `lines`

    @property
    def missed(self) -> list[Line]:
        """Return the objectives that were missed."""
        return [one for one in self.lines if one.missed]

    def start(self, bucket: int) -> int:
        """Return when a bucket begins."""
        return self.since_unix_nano + bucket * self.width_ns


def width_of(since_ns: int, until_ns: int) -> int:
    """Return the width of buckets of which at most `BUCKETS`, and one that the window cuts, make up a window."""
    wanted = (until_ns - since_ns) / BUCKETS
    return next((one * _S for one in _WIDTHS_S if one * _S >= wanted), _WIDTHS_S[-1] * _S)


def ask(source: Source, since_ns: int, until_ns: int) -> Found:
    """Return the outcomes of the requests of a window, of which `source` holds no others."""
    width = width_of(since_ns, until_ns)
    rows = source.reduce(REDUCTION, width=width, objectives=OBJECTIVES, kinds=KINDS)
    # Clocks of traced machines may run ahead of ours.
    ends = [(until_ns - 1) // width, *(row["bucket"] for row in rows)]
    first, last = since_ns // width, max(ends)
    last = min(last, first + 2 * BUCKETS)
    window = range(first, last + 1)
    shown = [row for row in rows if row["is_shown"]]  # each request once
    groups = by_keys([row for row in rows if not row["is_rest"]], KEYS)
    lines = [_line(key, of, width, until_ns) for key, of in groups.items() if any(map(_count_judged, of))]
    return Found(
        first * width,
        width,
        tuple(_over_time(shown, "requests", window)),
        tuple(map(round, _over_time(shown, "breaches", window))),
        {kind: tuple(map(round, _over_time(of, "breaches", window))) for kind, of in _by_kind(shown).items()},
        tuple(sorted(_losses(shown), key=lambda one: (-one.over_ms, -one.breaches, _text(one.kind)))),
        tuple(
            sorted(lines, key=lambda one: (not one.missed, -one.excess, one.service, one.route, one.objective or ""))
        ),
        counts(shown),
        any(row["is_rest"] for row in rows),
    )


def _count_judged(row: Mapping[str, Any]) -> float:
    return float(row["good"] + row["breaches"])


def _over_time(rows: Iterable[Mapping[str, Any]], column: str, window: range) -> list[float]:
    sums: dict[int, float] = defaultdict(float)
    for row in rows:
        sums[min(row["bucket"], window[-1])] += row[column]
    return [sums[bucket] for bucket in window]


def _by_kind(rows: Iterable[dict[str, Any]]) -> dict[Kind, list[dict[str, Any]]]:
    """Return the rows with breaches by their kind, each request once."""
    shown = [row for row in rows if row["is_shown"] and row["breaches"]]
    return {Kind(*key): of for key, of in by_keys(shown, ("stage", "cause", "is_rest_kind")).items()}


def _losses(rows: Iterable[dict[str, Any]]) -> list[Loss]:
    """Return the kinds of breaches, most breaches first."""
    found = [
        Loss(kind, round(sum(row["breaches"] for row in of)), round(sum(row["over_ms"] for row in of), 6))
        for kind, of in _by_kind(rows).items()
    ]
    return sorted(found, key=lambda one: (-one.breaches, -one.over_ms, _text(one.kind)))


def _text(kind: Kind) -> tuple[bool, str, str]:
    return (kind.is_rest, kind.stage or "", kind.cause or "")


def _line(key: tuple[Any, ...], rows: Sequence[dict[str, Any]], width: int, until_ns: int) -> Line:
    service, route, objective, text = key
    target = target_of(objective, text)
    own = counts(rows)
    known = attained(own)
    return Line(
        *(service, route, objective, target, own, known, is_missed(known, target)),
        tuple(_losses(rows)),
        _stretch(rows, until_ns),
        _latest(rows, target, width, until_ns),
    )


def _latest(rows: Sequence[Mapping[str, Any]], target: Target, width: int, until_ns: int) -> Stretch | None:
    """Return the latest stretch of time with too many breaches, as the reduction `incidents` finds them."""
    judged: dict[int, float] = defaultdict(float)
    breaches: dict[int, float] = defaultdict(float)
    for row in rows:
        judged[row["bucket"]] += _count_judged(row)
        breaches[row["bucket"]] += row["breaches"]
    share = min(_MOST_SHARE, _BURN * target.budget)
    bad = sorted(one for one, many in breaches.items() if many >= _LEAST and many >= share * judged[one])
    if not bad:
        return None
    gap = max(1, _GAP_NS // width)
    first = last = bad[-1]
    for one in reversed(bad):
        if first - one - 1 > gap:
            break
        first = one
    return _stretch([row for row in rows if first <= row["bucket"] <= last], until_ns)


def _stretch(rows: Iterable[Mapping[str, Any]], until_ns: int) -> Stretch | None:
    """Return from when to when the breaches among these are."""
    found = [row for row in rows if row["breaches"]]
    if not found:
        return None
    ends = max(row["last_unix_nano"] for row in found)
    begins, breaches = min(row["first_unix_nano"] for row in found), round(sum(row["breaches"] for row in found))
    return Stretch(begins, ends, breaches, is_over=until_ns - ends > _GAP_NS)
