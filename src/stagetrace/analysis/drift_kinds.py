"""Kinds of requests of which the duration changed at a moment: those with one value of an attribute, or a small route.

Out of a sample of requests with all their attributes. A kind is compared with the other requests of its route at the
same time, so that what all of them did is no change of the kind; routes with too few requests for quantiles over time
are compared with themselves. The test is Wilcoxon's of the ranks before and after, at each moment (Bonferroni); over
all kinds the share of false ones is bounded (Benjamini and Hochberg 1995).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from scipy import special, stats

from stagetrace.analysis.arrays import Array, Floats
from stagetrace.analysis.base import rank_of
from stagetrace.analysis.cases import Cases, coded
from stagetrace.analysis.drift import LEAST, RATE, STEP, Change, Looked
from stagetrace.analysis.onset import Release, least_lasting, undecided
from stagetrace.analysis.series import Track, Tracks, group_of, nice
from stagetrace.analysis.statistics import benjamini_hochberg, weighted_median

LEAST_REQUESTS: Final = 40  # of a kind
FACTOR: Final = 1.2  # by which a kind got slower, and by how much more than the others of its route
_SIDE: Final = 10  # requests before and after
_MOST: Final = 300  # kinds of one route, the largest
_SHARE: Final = 0.9  # of a route's requests; a larger kind is the route
_STEPS: Final = 30  # of time, within each of which a kind is compared with the others
_FEW: Final = 5  # others in a step
_KEPT: Final = 10
_DEPTH: Final = 3  # changes of one kind
_DRAWN: Final = (8, 60)  # steps of a picture
_PER_STEP: Final = 8
_SURE: Final = 4.0  # standard errors by which a kind got slower than the others
_NINE_IN_TEN: Final = 1.28  # deviations


class Kind(NamedTuple):
    """Requests of one route, sorted by time."""

    group: Group
    having: tuple[tuple[str, str | None], ...]  # none: all of the route
    rows: Array  # places in the sample
    others: Floats  # the logarithm of how long others of the route took at the time of each


class Found(NamedTuple):
    """The result of `look`."""

    looked: list[Looked]
    rows: Array  # of the kinds that changed: places in the sample


class Cut(NamedTuple):
    """A place in the requests of a kind at which their duration changes, and the chance of that."""

    place: int
    p_value: float


def look(sample: Sample, found: Tracks, releases: Sequence[Release], *, least: float = LEAST) -> Found:
    """Return the kinds that got slower than the rest of their route, and all routes that have no track.

    Of a route, a change by `least` is reported.
    """
    tracked = dict.fromkeys(one.group for one in found.tracks)
    kinds = [*_small_routes(sample, tracked), *(kind for group in tracked for kind in _kinds(sample, group))]
    if not kinds:
        return Found([], np.empty(0, int))
    clearest = [_clearest(sample, kind, 0, len(kind.rows)) for kind in kinds]
    q_values = benjamini_hochberg([cut.p_value for cut in clearest])
    order = sorted(range(len(kinds)), key=lambda place: (clearest[place].p_value, _order(kinds[place]), place))
    kept: list[Kind] = []
    made: list[Looked] = []
    for place in order:
        kind, q_value = kinds[place], float(q_values[place])
        is_found = q_value <= RATE and len(kept) < _KEPT and _is_own(sample, kind, kept, RATE / len(kinds))
        if kind.having and not is_found:
            continue
        track = _track(sample, kind, found.within.get(kind.group))
        changes = tuple(_changes(sample, kind, track, q_value, releases)) if is_found else ()
        changes = tuple(one for one in changes if abs(one.relative) >= least)
        kept += [kind] if changes else []
        if changes or not kind.having:
            made.append(Looked(track, changes, (), _detectable(sample, kind)))
    rows = [kind.rows for kind in kept if kind.having]
    return Found(made, np.concatenate([np.empty(0, int), *rows]))


def _small_routes(sample: Sample, tracked: Container[Group]) -> list[Kind]:
    """Return the routes that have no track, as a kind of their own."""
    return [
        Kind(group, (), places, np.zeros(len(places)))
        for group, places in sample.groups.items()
        if group not in tracked and len(places) >= LEAST_REQUESTS
    ]


def _order(kind: Kind) -> tuple[tuple[int, int, int], str]:
    """Return the place of a kind among others of the same requests: what a person thinks of first."""
    return rank_of(dict(kind.having)), kind.having[0][0] if kind.having else ""


def _kinds(sample: Sample, group: Group) -> Iterator[Kind]:
    """Yield the requests of a route by one value of each attribute, the largest kinds first."""
    places = sample.groups.get(group, np.empty(0, int))
    if len(places) < 2 * LEAST_REQUESTS:
        return
    found: list[tuple[int, str, str | None, Array]] = []
    for key, column in sample.cases.attributes.items():
        made = coded([column[place] for place in places], LEAST_REQUESTS)
        if made is None:
            continue
        for code, value in enumerate(made.values):
            mask = made.codes == code
            size = int(np.count_nonzero(mask))
            if size <= _SHARE * len(places):
                found.append((size, key, value, mask))
    found.sort(key=lambda one: -one[0])
    logs = sample.logs[places]
    steps = np.arange(len(places)) * min(_STEPS, max(1, len(places) // _PER_STEP)) // len(places)
    order = np.lexsort((logs, steps))
    for _, key, value, mask in found[:_MOST]:
        yield Kind(group, ((key, value),), places[mask], _medians(logs, steps, order, ~mask)[mask])


def _medians(logs: Floats, steps: Array, order: Array, others: Array) -> Floats:
    """Return the median of the others at each request's step of time; of all times where a step has few of them."""
    chosen = order[others[order]]
    counts = np.bincount(steps[chosen], minlength=int(steps[-1]) + 1)
    firsts = np.cumsum(counts) - counts
    values = logs[chosen[np.minimum(firsts + counts // 2, len(chosen) - 1)]]
    return np.asarray(np.where(counts >= _FEW, values, np.median(logs[chosen]))[steps])


def _values(sample: Sample, kind: Kind) -> Floats:
    return np.asarray(sample.logs[kind.rows] - kind.others)


def _clearest(sample: Sample, kind: Kind, first: int, last: int) -> Cut:
    """Return where the ranks before and after differ most, among the requests at [first, last)."""
    times = sample.starts[kind.rows[first:last]]
    places = np.arange(_SIDE, last - first - _SIDE + 1)
    if len(places):
        kept = (times[places] - times[0] >= sample.least_ns) & (times[-1] - times[places] >= sample.least_ns)
        places = places[kept & (times[places] > times[places - 1])]
    if not len(places):
        return Cut(first, 1.0)
    ratios = np.abs(_ratios(_values(sample, kind)[first:last])[places - 1])
    best = int(ratios.argmax())
    return Cut(first + int(places[best]), min(1.0, 2 * float(special.ndtr(-ratios[best])) * len(places)))


def _ratios(values: Floats) -> Floats:
    """Return how many deviations the sum of the ranks of the first 1, 2, ... values is above what chance has."""
    size = len(values)
    ranks = stats.rankdata(values) - (size + 1) / 2
    upto = np.arange(1, size)
    variance = float((ranks**2).mean()) * upto * (size - upto) / max(size - 1, 1)
    return np.cumsum(ranks)[:-1] / np.sqrt(np.maximum(variance, 1e-12))


def _is_own(sample: Sample, kind: Kind, kept: Iterable[Kind], limit: float) -> bool:
    """Return whether a kind changed also without the requests of those that are kept already."""
    taken = [other.rows for other in kept if other.group == kind.group]
    if not taken:
        return True
    left = ~np.isin(kind.rows, np.concatenate(taken))
    rest = kind._replace(rows=kind.rows[left], others=kind.others[left])
    return len(rest.rows) >= LEAST_REQUESTS and _clearest(sample, rest, 0, len(rest.rows)).p_value <= limit


def _changes(sample: Sample, kind: Kind, track: Track, q_value: float, releases: Sequence[Release]) -> Iterator[Change]:
    """Yield the changes of one kind, by time: of a part of a route, those by which it got slower than the rest."""
    cuts: set[int] = set()
    pending = [(0, len(kind.rows))]
    while pending and len(cuts) < _DEPTH:
        first, last = pending.pop(0)
        cut = _clearest(sample, kind, first, last)
        if cut.p_value <= RATE:
            cuts.add(cut.place)
            pending += [(first, cut.place), (cut.place, last)]
    edges = [0, *sorted(cuts), len(kind.rows)]
    route = sample.groups[kind.group]
    for (low, place), (_, high) in pairwise(pairwise(edges)):
        release = _release(sample, kind, (low, place, high), releases)
        at = int(sample.starts[kind.rows[place]]) if release is None else release.at_unix_nano
        before, after = kind.rows[low:place], kind.rows[place:high]
        until = sample.starts[kind.rows[high]] if high < len(kind.rows) else 2**63 - 1
        change = Change(
            *(track, STEP, at, sample.median(before), sample.median(after), q_value),
            ongoing=high == len(kind.rows),
            release=release,
            in_stage=_stage(sample, before, after),
            requests=sample.count(after),
            of=sample.count(route[(sample.starts[route] >= at) & (sample.starts[route] < until)])
            if kind.having
            else None,
        )
        if not kind.having or _is_worse(sample, kind, change):
            yield replace(change, **sample.harm(change, before, after)._asdict())


def _is_worse(sample: Sample, kind: Kind, change: Change) -> bool:
    """Return whether a kind got slower by FACTOR, and surely by as much more than the others of its route."""
    others = np.setdiff1d(sample.groups[kind.group], kind.rows)
    parts = [
        rows[(sample.starts[rows] >= change.at_unix_nano) == is_later]
        for rows in (kind.rows, others)
        for is_later in (False, True)
    ]
    if min(map(len, parts)) < _SIDE:
        return False
    before, after, usual_before, usual_after = (sample.median(part) for part in parts)
    more = after - before - (usual_after - usual_before)
    error = sum(_error(sample.took[part]) ** 2 for part in parts) ** 0.5
    return min(change.after_ms - change.before_ms, more) >= (FACTOR - 1) * change.before_ms and more >= _SURE * error


def _error(took: Floats) -> float:
    """Return the standard error of a median, from the order statistics beside it."""
    off = 0.5 / len(took) ** 0.5
    low, high = np.quantile(took, [0.5 - off, 0.5 + off])
    return float(high - low) / 2


def _release(sample: Sample, kind: Kind, around: tuple[int, int, int], releases: Sequence[Release]) -> Release | None:
    """Return the release at which a kind may as well have changed, by the squares that ranks leave on both sides."""
    low, at, high = around
    ranks = stats.rankdata(_values(sample, kind)[low:high])
    ranks -= ranks.mean()
    sums, total = np.concatenate([[0.0], np.cumsum(ranks)]), float((ranks**2).sum())

    def left(place: int) -> float:
        return max(total - float(sums[place]) ** 2 * (1 / place + 1 / (len(ranks) - place)), 1e-9)

    def worse_by(place: int) -> float:
        return float(len(ranks) / 2 * np.log(left(place) / left(at - low)))

    return undecided(releases, kind.group[0], sample.starts[kind.rows[low:high]], at - low, worse_by)


def _stage(sample: Sample, before: Array, after: Array) -> str | None:
    """Return the stage of which the mean grew, or shrank, with that of the requests by the most."""
    grown: dict[str, float] = {}
    for places, sign in ((before, -1), (after, 1)):
        for place in places.tolist():
            row = sample.cases.rows[place]
            for stage, took in zip(row["stage_names"], row["stage_ms"], strict=True):
                grown[stage] = grown.get(stage, 0.0) + sign * took / len(places)
    up = sample.took[after].mean() >= sample.took[before].mean()
    return max(sorted(grown), key=lambda stage: grown[stage] if up else -grown[stage], default=None)


def _track(sample: Sample, kind: Kind, within_ms: float | None) -> Track:
    """Return the medians of a kind over time."""
    starts = sample.starts[kind.rows]
    width = nice(int(np.ptp(starts)) / int(np.clip(len(kind.rows) // _PER_STEP, *_DRAWN)))
    origin = int(starts[0]) // width * width
    places = (starts - origin) // width
    values: list[float | None] = [None] * (int(places[-1]) + 1)
    for step in np.unique(places).tolist():
        inside = kind.rows[places == step]
        values[step] = sample.median(inside) if 2 * len(inside) >= _FEW else None
    return Track(*kind.group, None, "p50", origin, width, tuple(values), len(kind.rows), within_ms, kind.having)


def _detectable(sample: Sample, kind: Kind) -> float:
    """Return the relative step, lasting a quarter of the time, that would be seen nine times in ten."""
    size = len(kind.rows)
    low, high = np.quantile(sample.logs[kind.rows], [0.25, 0.75])
    error = float(high - low) / 1.35 * (4 / size + 4 / (3 * size)) ** 0.5
    return float(np.expm1(min((_NINE_IN_TEN - float(special.ndtri(RATE / size / 2))) * error, 10.0)))


# --- A sample of requests as arrays, by route: what a change of their latency does to them.

_TINY_MS: Final = 1e-3
_METHODS: Final = ("http.request.method", "http.method")
# Share of the requests that a change of a quantile is taken to be one of.
_SHARES: Final = {"p50": 1.0, "p95": 0.1, "p99": 0.02}
Group = tuple[str, str, str | None]


class Harm(NamedTuple):
    """What a change did: see `Change`."""

    harm_ms: float
    breaches: float | None


class Sample:
    """The requests of a sample as arrays; `groups` has the places of those of each route and model, by time."""

    def __init__(self, cases: Cases, since_ns: int, until_ns: int) -> None:
        """Take the requests that began in a window; those that ended before they began count for nothing."""
        self.cases = cases
        self.starts = np.array([row["start_unix_nano"] for row in cases.rows], np.int64)
        self.took = np.array([row["duration_ms"] for row in cases.rows], float)
        self.logs = np.log(np.maximum(self.took, _TINY_MS))
        self.weights = np.asarray(cases.weights, float)
        self.over = np.array([row["overrun_ms"] or 0.0 for row in cases.rows], float)
        self.breached = np.array([row["overrun_ms"] is not None for row in cases.rows], float)
        self.least_ns = least_lasting(until_ns - since_ns)
        methods = next((cases.attributes[key] for key in _METHODS if key in cases.attributes), None)
        groups: dict[Group, list[int]] = {}
        for place in np.argsort(self.starts, kind="stable").tolist():
            if self.took[place] >= 0 and since_ns <= self.starts[place] <= until_ns:
                method = None if methods is None else methods[place]
                groups.setdefault(group_of({**cases.rows[place], "method": method}), []).append(place)
        self.groups = {group: np.array(places) for group, places in groups.items()}

    def median(self, places: Array) -> float:
        """Return the median duration of some requests, by weight, ms."""
        return weighted_median(self.took[places], self.weights[places])

    def count(self, places: Array) -> float:
        """Return how many requests some stand for."""
        return float(self.weights[places].sum())

    def harm(self, change: Change, before: Array, after: Array) -> Harm:
        """Return what a change did to the requests after it: no more than as many times its milliseconds."""
        count = self.count(after)
        grown = count * _SHARES.get(change.track.quantile, 1.0) * (change.after_ms - change.before_ms)
        is_judged = change.track.within_ms is not None
        longer = count * self._more(self.over if is_judged else self.took, before, after)
        breaches = count * self._more(self.breached, before, after) if is_judged else None
        return Harm(float(np.clip(longer, min(grown, 0.0), max(grown, 0.0))), breaches)

    def _more(self, values: Array, before: Array, after: Array) -> float:
        """Return by how much the weighted mean of some values is larger after a change than before it."""
        means = [
            float(np.average(values[places], weights=self.weights[places])) if len(places) else 0.0
            for places in (before, after)
        ]
        return means[1] - means[0]

    def weighed(self, looked: Sequence[Looked], kinds: Array) -> list[Looked]:
        """Return the changes of tracks with what they did, but to the requests of `kinds` that have their own."""
        return [replace(one, changes=tuple(self._weighed(one.changes, kinds))) for one in looked]

    def _weighed(self, changes: Sequence[Change], kinds: Array) -> list[Change]:
        edges = [0, *(one.at_unix_nano for one in changes), 2**63 - 1]
        made = []
        for place, one in enumerate(changes, 1):
            rows = np.setdiff1d(self.groups.get(one.track.group, np.empty(0, int)), kinds)
            starts = self.starts[rows]
            before, after = (
                rows[(starts >= low) & (starts < high)]
                for low, high in ((edges[place - 1], edges[place]), (edges[place], edges[place + 1]))
            )
            made.append(replace(one, requests=self.count(after), **self.harm(one, before, after)._asdict()))
        return made
