"""Whether latency has drifted: the steps and slopes of quantiles over time, of each route, stage and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from scipy import special, stats

from stagetrace.analysis.arrays import Floats, Indices
from stagetrace.analysis.levels import ALARMS, SHORTEST, Levels, Noise, hinge, left_over, levels
from stagetrace.analysis.onset import UNDECIDED, Release, least_lasting, near
from stagetrace.analysis.series import Track, without_pattern
from stagetrace.analysis.statistics import benjamini_hochberg

STEP: Final = "step"
SLOPE: Final = "slope"
LEAST: Final = 0.05  # relative size of a change that is reported
RATE: Final = 0.01  # share of false ones among the reported changes
_PART: Final = 0.2  # of LEAST, in times of the whole request: what a stage must change by
_MATTERS: Final = 2.0  # likewise, for a change to matter where it is below LEAST of the objective
_TINY_MS: Final = 1e-3
_LEAST_SLOPE: Final = 12  # values
_EXPLAINED: Final = 0.5  # of the variance, by a line that is a trend
_NINE_IN_TEN: Final = 1.28  # deviations
_HOUR_NS: Final = 3600 * 10**9
DAY_NS: Final = 86_400 * 10**9
_OFF: Final = 0.02  # by which steps may miss a day


def periods_of(step_ns: float) -> list[int]:
    """Return a day and a week in steps, where they are whole numbers of them."""
    found = [round(days * DAY_NS / step_ns) for days in (1, 7)]
    return [
        steps for steps, days in zip(found, (1, 7), strict=True) if abs(steps * step_ns / DAY_NS - days) < _OFF * days
    ]


@dataclass(frozen=True)
class Change:
    """One step or slope of a track."""

    track: Track
    kind: str  # STEP or SLOPE
    at_unix_nano: int  # where the new level, or the slope, begins
    before_ms: float
    after_ms: float  # of a slope: at its end
    q_value: float
    ongoing: bool  # the level, or slope, that the track ends with
    slope_ms_per_h: float | None = None
    release: Release | None = None  # with which it began
    in_stage: str | None = None  # of a kind of requests: the stage that changed by the most
    requests: float | None = None  # since then, until the next change
    of: float | None = None  # of a kind: requests of its route since then
    harm_ms: float | None = None  # requests times ms over the objective more than before; without one, times ms
    breaches: float | None = None  # more than before; None: without an objective
    is_small: bool = False  # too small to matter

    @property
    def relative(self) -> float:
        """Return by which share it got slower; below 0: faster."""
        return self.after_ms / self.before_ms - 1 if self.before_ms > 0 else float(self.after_ms > 0)


class Trend(NamedTuple):
    """A line through a whole track: what its beginning and its end are, ms."""

    before_ms: float
    after_ms: float
    ms_per_h: float


@dataclass(frozen=True)
class Looked:
    """The result for one track: `detectable` is the relative step, lasting a quarter of it, that would be seen.

    `trend` is there where a line explains most of what a track did without a change: it only describes, for a random
    walk has one too.
    """

    track: Track
    changes: tuple[Change, ...]
    periods: tuple[int, ...]  # of the patterns taken out, in steps
    detectable: float
    trend: Trend | None = None


def look(
    tracks: Sequence[Track],
    releases: Sequence[Release] = (),
    *,
    least: float = LEAST,
    alarms: float = ALARMS,
    rate: float = RATE,
) -> list[Looked]:
    """Return the changes of each track by `least` or more, of which a share of `rate` at most is false on average.

    A change that cannot be told from a release began with it. A track without change has
    `alarms` false ones on average before the correction (Benjamini and Hochberg 1995).
    """
    found = [_candidates(track, alarms, releases) for track in tracks]
    chances = [change.q_value for looked in found for change in looked.changes]
    silent = sum(not looked.changes for looked in found)
    q_values = iter(benjamini_hochberg([*chances, *[1.0] * silent]) if chances else ())
    whole = {(one.track.group, one.track.quantile): one.track for one in found if one.track.stage is None}
    made = []
    for looked in found:
        kept = [replace(change, q_value=float(next(q_values))) for change in looked.changes]
        request = whole.get((looked.track.group, looked.track.quantile), looked.track)
        kept = [change for change in kept if change.q_value <= rate and _is_practical(change, request, least)]
        kept = [replace(change, is_small=_is_small(change, request, least)) for change in kept]
        trend = None if kept else looked.trend
        if trend is not None and abs(trend.after_ms - trend.before_ms) < _MATTERS * least * trend.before_ms:
            trend = None
        made.append(replace(looked, changes=tuple(kept), detectable=max(looked.detectable, least), trend=trend))
    return made


def _is_practical(change: Change, request: Track, least: float) -> bool:
    """Return whether a change is of a practical size: of its track, and a part of that of the whole request as well."""
    size = abs(change.after_ms - change.before_ms)
    return size >= least * change.before_ms and size >= _PART * least * _typical(request)


def _is_small(change: Change, request: Track, least: float) -> bool:
    """Return whether a change is too small to matter: of the whole request, and of its objective."""
    size = abs(change.after_ms - change.before_ms)
    if change.track.stage is None and change.track.within_ms is None:
        return False
    within_ms = change.track.within_ms
    return size < _MATTERS * least * _typical(request) and (within_ms is None or size < least * within_ms)


def _typical(track: Track) -> float:
    return float(np.median([value for value in track.values if value is not None]))


def _candidates(track: Track, alarms: float, releases: Sequence[Release]) -> Looked:
    """Return the steps and slopes of one track with their chance in it as `q_value`."""
    grid = np.array([np.nan if value is None else max(value, _TINY_MS) for value in track.values])
    with np.errstate(invalid="ignore"):
        grid = np.log(grid)
    # A day and a week alone: in minutes of data, a burst every few seconds is no pattern.
    clean, periods = without_pattern(grid, periods_of(track.step_ns))
    known, values, steps = _levels(clean, alarms, least_lasting(len(clean) * track.step_ns) / track.step_ns)
    edges = [0, *(int(start) for start in steps.starts), len(values)]
    means = [float(values[low:high].mean()) for low, high in pairwise(edges)]
    changes = [
        Change(
            track,
            STEP,
            track.start_unix_nano + int(known[start]) * track.step_ns,
            _ms(before),
            _ms(after),
            float(chance),
            ongoing=place == len(steps.starts) - 1,
        )
        for place, (start, (before, after), chance) in enumerate(
            zip(steps.starts, pairwise(means), steps.p_values, strict=True)
        )
    ]
    for low, high in pairwise(edges):
        slope = _slope(track, known, values, (low, high), steps.noise, alarms)
        if slope is not None:
            changes = [replace(change, ongoing=False) for change in changes] if slope.ongoing else changes
            changes.append(slope)
    changes = [_released(change, known, values, edges, steps.noise, releases) for change in changes]
    changes = changes or _at_releases(track, known, values, steps.noise, releases, alarms)
    changes.sort(key=lambda change: change.at_unix_nano)
    trend = _trend(track, known, values)
    return Looked(track, tuple(changes), periods, _detectable(steps, len(values), alarms), trend)


def _trend(track: Track, known: Indices, values: Floats) -> Trend | None:
    """Return the line through all values, where it explains most of their variance."""
    if len(values) < _LEAST_SLOPE or np.ptp(values) == 0:
        return None
    rest, _ = left_over(values, known)
    if rest > (1 - _EXPLAINED) * float(((values - values.mean()) ** 2).sum()):
        return None
    slope, level = np.polyfit(known, values, 1)
    before, after = (_ms(np.clip(level + slope * at, values.min(), values.max())) for at in (known[0], known[-1]))
    return Trend(before, after, (after - before) / (int(known[-1] - known[0]) * track.step_ns / _HOUR_NS))


def _levels(grid: Floats, alarms: float, least: float) -> tuple[Indices, Floats, Levels]:
    """Return where a grid has values, these, and their levels, each of `least` steps or more: no blip is one."""
    while True:
        known = np.flatnonzero(np.isfinite(grid))
        values = grid[known]
        steps = levels(values, alarms)
        ends = [*known[steps.starts], len(grid)]
        blips = [(low, high) for low, high in zip([0, *ends], ends, strict=False) if high - low < least]
        if not blips:
            return known, values, steps
        grid = grid.copy()
        for low, high in blips:
            grid[low:high] = np.nan


def _released(
    change: Change, known: Indices, values: Floats, edges: Sequence[int], noise: Noise, releases: Sequence[Release]
) -> Change:
    """Return a step as of the release from which its moment cannot be told by the squares that both leave."""
    track = change.track
    if change.kind != STEP or not releases:
        return change
    cut = int(np.searchsorted(known, (change.at_unix_nano - track.start_unix_nano) // track.step_ns))
    place = edges.index(cut)
    low, high = edges[place - 1], edges[place + 1]
    part = values[low:high]
    unit = 2 * max(float(part[: cut - low].var() + part[cut - low :].var()) / 2, 1e-18)
    unit *= (1 + noise.rho) / (1 - noise.rho)
    best = left_over(part, np.arange(low, high) >= cut)[0]
    found = []
    ends = [track.start_unix_nano + int(known[at]) * track.step_ns for at in (low, high - 1)]
    for one in near(releases, track.service, *ends):
        bucket = (one.at_unix_nano - track.start_unix_nano) // track.step_ns
        # The step of time in which it was released has requests of both.
        for at in {int(np.searchsorted(known, bucket)), int(np.searchsorted(known, bucket + 1))}:
            loss = 0.0 if at == cut else (left_over(part, np.arange(low, high) >= at)[0] - best) / unit
            if low < at < high and loss <= UNDECIDED:
                found.append((one.order, loss, one))
    return replace(change, at_unix_nano=min(found)[2].at_unix_nano, release=min(found)[2]) if found else change


def _at_releases(
    track: Track, known: Indices, values: Floats, noise: Noise, releases: Sequence[Release], alarms: float
) -> list[Change]:
    """Return the step at the release after which the ranks of the values changed most, if its chance is small.

    A moment that is known takes less evidence than one that is sought among all.
    """
    if not len(known) or np.ptp(values) == 0:
        return []
    ends = (track.start_unix_nano + int(known[at]) * track.step_ns for at in (0, -1))
    candidates = near(releases, track.service, *ends)
    ranks = stats.rankdata(values)
    found = []
    for one in candidates:
        # The step of time in which it was released has requests of both.
        cut = int(np.searchsorted(known, (one.at_unix_nano - track.start_unix_nano) // track.step_ns + 1))
        sizes = cut, len(values) - cut
        if min(sizes) < _LEAST_SLOPE:
            continue
        grown = float(ranks[cut:].mean() - ranks[:cut].mean())
        error = float(ranks.std() * noise.of_contrast(*sizes) ** 0.5)
        chance = min(1.0, 2 * float(special.ndtr(-abs(grown) / error)) * len(candidates))
        before, after = (_ms(float(part.mean())) for part in (values[:cut], values[cut:]))
        found.append(
            (chance, one.order, Change(track, STEP, one.at_unix_nano, before, after, chance, ongoing=True, release=one))
        )
    return [change for chance, _, change in sorted(found, key=lambda each: each[:2])[:1] if chance <= alarms]


def _slope(
    track: Track, known: Indices, values: Floats, ends: tuple[int, int], noise: Noise, alarms: float
) -> Change | None:
    """Return the slope between two places without steps, if it stands out of the noise; `q_value` is its chance."""
    low, high = ends
    if high - low < _LEAST_SLOPE or np.ptp(values[low:high]) == 0:
        return None
    part = values[low:high]
    _, first, last = hinge(part)
    at = np.clip(np.arange(len(part), dtype=float), first, last)
    _, ratio = left_over(part, at)
    inflated = float(noise.of_mean(len(part)) * len(part))
    freedom = max((len(part) - 2) / inflated, 1.0)
    chance = min(2 * float(special.stdtr(freedom, -ratio / inflated**0.5)) * len(values), 1.0)
    if chance > alarms:
        return None
    slope, level = np.polyfit(at, part, 1)
    # Where the growth is no straight line, its ends may lie beyond all values.
    before, after = (_ms(np.clip(level + slope * place, part.min(), part.max())) for place in (first, last))
    since, until = (
        track.start_unix_nano + int(known[min(low + one, high - 1)]) * track.step_ns for one in (first, last)
    )
    hours = max(until - since, track.step_ns) / _HOUR_NS
    ongoing = high == len(values) and last == len(part)
    return Change(track, SLOPE, since, before, after, chance, ongoing, (after - before) / hours)


def _detectable(steps: Levels, size: int, alarms: float) -> float:
    """Return the relative step over a quarter of the track that would be found nine times in ten."""
    if steps.unit == 0 or size < _LEAST_SLOPE:
        return 0.0
    quarter = max(size // 4, SHORTEST)
    error = steps.noise.deviation * steps.unit * float(steps.noise.of_contrast(quarter, size - quarter)) ** 0.5
    return float(np.expm1(min((_NINE_IN_TEN - float(special.ndtri(alarms / size / 2))) * error, 10.0)))


def _ms(logarithm: float) -> float:
    """Return a duration from its logarithm, to nine digits."""
    return float(f"{np.exp(logarithm):.9g}")


def is_worse(looked: Looked) -> bool:
    """Return whether the newest level of a track is slower than the one before it, by so much that it matters."""
    return any(change.ongoing and change.relative > 0 and not change.is_small for change in looked.changes)
