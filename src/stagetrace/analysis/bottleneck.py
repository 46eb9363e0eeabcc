"""Where the time of requests goes: the gain of shortening a stage, and its share at any percentile and over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis import stage_bins
from stagetrace.analysis.base import Source, by_keys, sample_of
from stagetrace.analysis.estimates import Sample
from stagetrace.analysis.stage_bins import NO_STAGE, Band, Bins, Interval

# --- Which stage takes the time of requests, at the median and in the tail, and the gain of shortening it.
#
# A share is conditional on the total: among the requests whose total lies in a band of ranks around a percentile, the
# time of a stage, by weight, over the time of all. Requests come in bins of 1 % of duration; of a bin at the edge of a
# band, the part that lies within counts. Time that is in no stage is a part of its own, so that shares add up to 1.

PERCENTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99}  # their ranks
CUT: Final = 0.1  # part by which `what_if` shortens a stage
MOST_GROUPS: Final = 100
_MOST_CUT: Final = 8  # stages that are shortened, those with the greatest shares
_LEAST_CUT: Final = 0.001  # share that one has at some percentile

# --- Where the time of requests goes at any percentile of their total: of all, of groups, and over time.
#
# Shares are those of `bottleneck`, within bands of ranks. Where a group has too few requests for a band, they are those
# of all its requests, and its total is the mean.

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
    rows, own = _binned(source, by, most)
    own_of = by_keys(own, by)
    found = [_measured(key, some, own_of.get(key, [])) for key, some in by_keys(rows, by).items()]
    found.sort(key=lambda group: (-group.requests, *map(str, group.by)))
    weights = {row[name] for row in rows for name in ("least_weight", "most_weight")}
    return _with_quantiles(source, "what_if" if len(weights) == 1 else "weighted_what_if", by, found)


def _binned(source: Source, by: Sequence[str], most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of `stage_bins`, and of `own_stage_bins` where there are any."""
    rows = source.reduce("stage_bins", by, most=most)
    return rows, source.reduce("own_stage_bins", by, most=most) if any(row["other_ms"] for row in rows) else []


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what a `Group` and a `Whole` have of the requests in rows of `stage_bins`."""
    forwards = _forwards(rows)
    stored = sum(row["stored"] for row in forwards)
    return {
        "requests": sum(row["requests"] for row in forwards),
        "sample": sample_of(rows)._replace(rows=stored),
        "backwards": sum(row["stored"] for row in rows) - stored,
        "overlapping": sum(row["overlapping"] for row in forwards),
    }


def _measured(by: By, rows: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> Group:
    """Return one group from its rows of `stage_bins` and `own_stage_bins`, without quantiles."""
    bins = stage_bins.bins(_forwards(rows), _forwards(own))
    bands = {percentile: stage_bins.band(bins, rank) for percentile, rank in PERCENTILES.items()}
    return Group(by=by, **_counts(rows), total_ms=dict.fromkeys(PERCENTILES), bands=bands, stages=_stages(bins, bands))


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


OTHERS: Final = "(others)"  # stages that programs define themselves, together
_SAMPLED_OF_BIN: Final = 100  # requests of a bin, for intervals
_EVER: Final = 2**62  # ns: a bucket that everything lies in
_MOST_BUCKETS: Final = 61
_S: Final = 10**9
_MINUTE: Final = 60 * _S
_WIDTHS: Final = (
    *(step * _S // 1000 for step in (1, 10, 100)),
    *(step * unit for unit in (_S, _MINUTE) for step in (1, 2, 5, 10, 15, 30)),
    *(hours * 60 * _MINUTE for hours in (1, 2, 3, 6, 12, 24, 168)),
)


@dataclass(frozen=True)
class Shares:
    """Where the time goes around one percentile; `rank` None: of all requests, whose mean `total_ms` is.

    `share` adds up to 1, in the order of stages (None: the time in no stage); it is empty where nothing takes time.
    """

    rank: float | None
    total_ms: float
    share: Mapping[str | None, float]
    band: Band | None = None
    interval: Mapping[str | None, Interval] | None = None  # of 95 %, where it was asked for

    @property
    def greatest(self) -> str | None:
        """Return the stage with the greatest share."""
        return max(self.share, key=lambda stage: self.share[stage], default=None)

    def ms(self, stage: str | None) -> float:
        """Return the time of a stage."""
        return self.total_ms * self.share.get(stage, 0.0)


class ShareGroup(NamedTuple):
    """Some requests, and where their time goes: at the percentile asked for, or else on average."""

    key: Any  # None: requests that lack what groups are made by
    requests: float  # by weight
    sample: Sample
    shares: Shares


@dataclass(frozen=True)
class Groups:
    """The largest groups, out of `count`."""

    groups: Sequence[ShareGroup]
    count: int


@dataclass(frozen=True)
class Course:
    """Where the time goes in consecutive buckets of time, the first of which begins at `origin_ns`."""

    origin_ns: int
    width_ns: int
    buckets: Sequence[ShareGroup | None]  # None: without requests
    is_narrowed: bool  # the window has more time, without requests


@dataclass(frozen=True)
class Whole:
    """Where the time of a selection goes: on average, and at each percentile for which there are enough requests."""

    requests: float
    sample: Sample
    backwards: int  # end before they start: counted here alone
    overlapping: int  # whose stages take longer together than they do
    mean: Shares
    at: Mapping[float, Shares | None]


def whole(source: Source, ranks: Sequence[float], sure: Sequence[float]) -> Whole | None:
    """Return where the time of all requests goes, with intervals at those of `sure`; None where there are none."""
    rows, own = _binned(source, (), _SAMPLED_OF_BIN)
    forwards = _forwards(rows)
    if not forwards:
        return None
    bins = stage_bins.bins(forwards, _forwards(own))
    return Whole(
        **_counts(rows), mean=_mean(bins), at={rank: _around(bins, rank, is_sure=rank in sure) for rank in ranks}
    )


def by_key(source: Source, key: str, rank: float, most: int) -> Groups:
    """Return the `most` largest groups by a column of requests, `path` or an attribute."""
    rows = source.reduce("stage_sums", [key], origin=0, width=_EVER, most=most)
    found = [_group(name, some, rank) for (name,), some in by_keys(_forwards(rows), [key]).items()]
    found.sort(key=lambda group: (-group.requests, str(group.key)))
    return Groups(found, max((row["groups"] for row in rows), default=0))


def over_time(source: Source, rank: float, since_ns: int, until_ns: int) -> Course | None:
    """Return where the time goes over a window; None where it has no requests.

    A window that they fill less than half of is narrowed to them.
    """
    (extent,) = source.reduce("extent") or [{"stored": 0}]
    if not extent["stored"]:
        return None
    first, last = extent["first_unix_nano"], extent["last_unix_nano"] + 1
    is_narrowed = 2 * (last - first) < until_ns - since_ns
    start, end = (first, last) if is_narrowed else (min(since_ns, first), max(until_ns, last))
    width = next((one for one in _WIDTHS if one * _MOST_BUCKETS >= end - start), -(-(end - start) // _MOST_BUCKETS))
    origin = start // width * width
    rows = source.reduce("stage_sums", origin=origin, width=width, most=1)
    found = {bucket: _group(None, some, rank) for (bucket,), some in by_keys(_forwards(rows), ["bucket"]).items()}
    count = -(-(end - origin) // width)
    return Course(origin, width, [found.get(bucket) for bucket in range(count)], is_narrowed)


def _forwards(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["bin"] != stage_bins.BACKWARDS]


def _group(key: Any, rows: Sequence[dict[str, Any]], rank: float) -> ShareGroup:
    own = [{"bin": row["bin"], "stage": OTHERS, "ms": row["other_ms"]} for row in rows if row["other_ms"]]
    bins = stage_bins.bins(rows, own)
    found = _around(bins, rank, is_sure=False) or _mean(bins)
    return ShareGroup(key, sum(row["requests"] for row in rows), sample_of(rows), found)


def _around(bins: Bins, rank: float, *, is_sure: bool) -> Shares | None:
    """Return the shares around a percentile; None where there are too few requests."""
    band, total = stage_bins.band(bins, rank), bins.quantile(rank)
    if band is None or total is None:
        return None
    interval = None
    if is_sure and (found := stage_bins.intervals_around(bins, band, rank)) is not None:
        interval = dict(zip(bins.names, found, strict=True))
    return Shares(rank, total, _shares(bins, band.low, band.high), band, interval)


def _mean(bins: Bins) -> Shares:
    return Shares(None, float(bins.times.sum() / bins.weights.sum()), _shares(bins, 0.0, 1.0))


def _shares(bins: Bins, low: float, high: float) -> dict[str | None, float]:
    found = stage_bins.shares(bins, low, high)
    if found is None:
        return {}
    return {name: share for name, share in zip(bins.names, found.tolist(), strict=True) if share > 0}
