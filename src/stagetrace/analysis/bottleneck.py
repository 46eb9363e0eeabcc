"""Which stage takes the time of requests, at the median and in the tail, and the gain of shortening it.

A share is conditional on the total: among the requests whose total lies in a band of ranks around a percentile, the
time of a stage, by weight, over the time of all. Requests come in bins of 1 % of duration; of a bin at the edge of a
band, the part that lies within counts. Time that is in no stage is a part of its own, so that shares add up to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from stagetrace import semconv
from stagetrace.analysis import stage_bins
from stagetrace.analysis.source import Source, by_keys, sample_of
from stagetrace.analysis.stage_bins import NO_STAGE, Band, Bins, Interval
from stagetrace.estimates import Sample

PERCENTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99}  # their ranks
CUT: Final = 0.1  # part by which `what_if` shortens a stage
MOST_GROUPS: Final = 100
_MOST_CUT: Final = 8  # stages that are shortened, those with the greatest shares
_LEAST_CUT: Final = 0.001  # share that one has at some percentile
_SAMPLED: Final = 40_000  # requests of all bins of all groups together, about
_BINS: Final = 400  # of one group, about
_NETWORK: Final = (semconv.NETWORK_RECEIVE, semconv.NETWORK_SEND)

By = tuple[Any, ...]  # the values of what is grouped by


@dataclass(frozen=True)
class Stage:
    """One stage (None: the time in no stage), by percentile; None where there is not enough data."""

    stage: str | None
    share: Mapping[str, float | None]
    interval: Mapping[str, Interval | None]  # of 95 %, by bootstrap
    what_if: Mapping[str, float | None]  # part by which the percentile falls if the stage takes 10 % less


@dataclass(frozen=True)
class Group:
    """Where the time of a group of requests goes. All by percentile, None where there is not enough data."""

    by: By
    requests: float  # by weight
    sample: Sample
    backwards: int  # end before they start: counted here alone
    overlapping: int  # whose stages take longer together than they do
    total_ms: Mapping[str, float | None]
    bands: Mapping[str, Band | None]
    stages: tuple[Stage, ...]  # the greatest share first, at the highest percentile that is known

    def share_of(self, stages: Iterable[str | None]) -> dict[str, float | None]:
        """Return the share of several stages together, by percentile."""
        chosen = set(stages)
        found: dict[str, float | None] = {}
        for percentile in PERCENTILES:
            shares = [one.share[percentile] for one in self.stages if one.stage in chosen]
            is_known = any(one.share[percentile] is not None for one in self.stages)
            found[percentile] = sum(share or 0.0 for share in shares) if is_known else None
        return found

    @property
    def queue_share(self) -> dict[str, float | None]:
        """Return the share of waiting for a thread, worker or batch."""
        return self.share_of([semconv.QUEUE])

    @property
    def network_share(self) -> dict[str, float | None]:
        """Return the share of receiving requests and sending responses."""
        return self.share_of(_NETWORK)

    @property
    def service_share(self) -> dict[str, float | None]:
        """Return the share of all other stages: the service's own work."""
        return self.share_of({one.stage for one in self.stages} - {NO_STAGE, semconv.QUEUE, *_NETWORK})


def needed(percentile: str) -> int:
    """Return how many requests are enough to answer at a percentile: two of them can be expected beyond it."""
    return stage_bins.needed(PERCENTILES[percentile])


def ask(source: Source, by: Sequence[str] = (), groups: int = 1) -> list[Group]:
    """Return where the time of each group goes, the largest group first; `groups`: how many there are, about."""
    most = max(4, min(100, _SAMPLED // (_BINS * groups)))
    rows = source.reduce("stage_bins", by, most=most)
    own = source.reduce("own_stage_bins", by, most=most) if any(row["other_ms"] for row in rows) else []
    own_of = by_keys(own, by)
    found = [measured(key, some, own_of.get(key, [])) for key, some in by_keys(rows, by).items()]
    found.sort(key=lambda group: (-group.requests, *map(str, group.by)))
    weights = {row[name] for row in rows for name in ("least_weight", "most_weight")}
    return _with_quantiles(source, "what_if" if len(weights) == 1 else "weighted_what_if", by, found)


def measured(by: By, rows: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> Group:
    """Return one group from its rows of `stage_bins` and `own_stage_bins`, without quantiles."""
    forwards = [row for row in rows if row["bin"] != stage_bins.BACKWARDS]
    bins = stage_bins.bins(forwards, [row for row in own if row["bin"] != stage_bins.BACKWARDS])
    bands = {percentile: stage_bins.band(bins, rank) for percentile, rank in PERCENTILES.items()}
    return Group(
        by=by,
        requests=sum(row["requests"] for row in forwards),
        sample=sample_of(rows)._replace(rows=sum(row["stored"] for row in forwards)),
        backwards=sum(row["stored"] for row in rows) - sum(row["stored"] for row in forwards),
        overlapping=sum(row["overlapping"] for row in forwards),
        total_ms=dict.fromkeys(PERCENTILES),
        bands=bands,
        stages=_stages(bins, bands),
    )


def _stages(bins: Bins, bands: Mapping[str, Band | None]) -> tuple[Stage, ...]:
    """Return the stages that take any time at some percentile."""
    shares: dict[str, list[float] | None] = {}
    intervals: dict[str, list[Interval] | None] = {}
    for percentile, band in bands.items():
        exact = None if band is None else stage_bins.shares(bins, band.low, band.high)
        shares[percentile] = None if exact is None else exact.tolist()
        rank = PERCENTILES[percentile]
        intervals[percentile] = None if band is None else stage_bins.intervals_around(bins, band, rank)
    found = []
    for place, name in enumerate(bins.names):
        share = {percentile: None if all_of is None else all_of[place] for percentile, all_of in shares.items()}
        if any(share.values()):
            interval = {key: None if some is None else some[place] for key, some in intervals.items()}
            found.append(Stage(name, share, interval, dict.fromkeys(PERCENTILES)))
    highest = next((one for one in reversed(PERCENTILES) if shares[one] is not None), "p99")
    return tuple(sorted(found, key=lambda one: -(one.share[highest] or 0.0)))


def _with_quantiles(source: Source, name: str, by: Sequence[str], groups: list[Group]) -> list[Group]:
    """Return groups with the percentiles of their totals, and their values if a stage took less."""

    def asked(stage: str, cut: float) -> dict[By, list[float]]:
        rows = source.reduce(name, by, stage=stage, cut=cut)
        return {tuple(row[key] for key in by): row["quantiles"] for row in rows}

    greatest: dict[str, float] = {}
    for group in groups:
        for one in group.stages:
            if one.stage is not NO_STAGE:
                most = max(share or 0.0 for share in one.share.values())
                greatest[one.stage] = max(most, greatest.get(one.stage, 0.0))
    chosen = sorted((stage for stage in greatest if greatest[stage] >= _LEAST_CUT), key=lambda one: -greatest[one])
    totals = asked(semconv.QUEUE, 0.0) if groups else {}
    cut = {stage: asked(stage, CUT) for stage in chosen[:_MOST_CUT]}
    made = []
    for group in groups:
        known = [percentile if group.bands[percentile] else None for percentile in PERCENTILES]
        total = _by_percentile(known, totals.get(group.by))
        stages = []
        for one in group.stages:
            less = _by_percentile(known, cut.get(one.stage or "", {}).get(group.by))
            brings = {key: _part(total[key], less[key]) for key in PERCENTILES}
            stages.append(replace(one, what_if=brings))
        made.append(replace(group, total_ms=total, stages=tuple(stages)))
    return made


def _by_percentile(known: Sequence[str | None], quantiles: Sequence[float] | None) -> dict[str, float | None]:
    if quantiles is None:
        return dict.fromkeys(PERCENTILES)
    return {key: value if key in known else None for key, value in zip(PERCENTILES, quantiles, strict=True)}


def _part(total: float | None, less: float | None) -> float | None:
    return None if total is None or less is None or total <= 0 else 1 - less / total
