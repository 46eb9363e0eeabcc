"""Where the time of requests goes at any percentile of their total: of all, of groups, and over time.

Shares are those of `bottleneck`, within bands of ranks. Where a group has too few requests for a band, they are those
of all its requests, and its total is the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace.analysis import stage_bins
from stagetrace.analysis.source import Source, by_keys, sample_of
from stagetrace.analysis.stage_bins import Band, Bins, Interval
from stagetrace.estimates import Sample

OTHERS: Final = "(others)"  # stages that programs define themselves, together
_SAMPLED: Final = 100  # requests of a bin, for intervals
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


class Group(NamedTuple):
    """Some requests, and where their time goes: at the percentile asked for, or else on average."""

    key: Any  # None: requests that lack what groups are made by
    requests: float  # by weight
    sample: Sample
    shares: Shares


@dataclass(frozen=True)
class Groups:
    """The largest groups, out of `count`."""

    groups: Sequence[Group]
    count: int


@dataclass(frozen=True)
class Course:
    """Where the time goes in consecutive buckets of time, the first of which begins at `origin_ns`."""

    origin_ns: int
    width_ns: int
    buckets: Sequence[Group | None]  # None: without requests
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
    rows = source.reduce("stage_bins", most=_SAMPLED)
    own = source.reduce("own_stage_bins", most=_SAMPLED) if any(row["other_ms"] for row in rows) else []
    forwards = _forwards(rows)
    if not forwards:
        return None
    bins = stage_bins.bins(forwards, _forwards(own))
    stored = sum(row["stored"] for row in forwards)
    return Whole(
        requests=sum(row["requests"] for row in forwards),
        sample=sample_of(rows)._replace(rows=stored),
        backwards=sum(row["stored"] for row in rows) - stored,
        overlapping=sum(row["overlapping"] for row in forwards),
        mean=_mean(bins),
        at={rank: _around(bins, rank, is_sure=rank in sure) for rank in ranks},
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


def _group(key: Any, rows: Sequence[dict[str, Any]], rank: float) -> Group:
    own = [{"bin": row["bin"], "stage": OTHERS, "ms": row["other_ms"]} for row in rows if row["other_ms"]]
    bins = stage_bins.bins(rows, own)
    found = _around(bins, rank, is_sure=False) or _mean(bins)
    return Group(key, sum(row["requests"] for row in rows), sample_of(rows), found)


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
