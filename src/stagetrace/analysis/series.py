"""Series of latency: quantiles over time in steps of enough requests, and the pattern that they repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.ndimage import median_filter

from stagetrace.analysis.arrays import Floats
from stagetrace.analysis.base import Source

# --- Quantiles of latency over time, of each route, stage and model: in steps that hold enough requests for each.

BY: Final = ("service", "method", "path", "model")
REQUEST: Final = "request"  # the `part` that is no stage
# Quantile -> requests that a step of time has at least, typically: half of them must be there for it to count.
NEEDED: Final[Mapping[str, int]] = {"p50": 10, "p95": 40, "p99": 100}
LEAST_STEPS: Final = 16
MOST_STEPS: Final = 480
MOST_GROUPS: Final = 40
LEAST_REQUESTS: Final = LEAST_STEPS * NEEDED["p50"]  # of a group
_COARSER: Final = 4
_WIDTHS: Final = 3
_S: Final = 10**9
_NICE_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_NEARLY_ALL: Final = 0.98
_FEW: Final = 0.1  # share of all steps in which nearly all requests are, where some clock was far off
_LOOKS: Final = 6


@dataclass(frozen=True)
class Track:
    """A quantile of one stage (None: of the whole request) over time: ms in each step, None where requests are few."""

    service: str
    route: str  # with its method: `POST /predict`
    model: str | None
    stage: str | None
    quantile: str  # p50, p95, p99
    start_unix_nano: int
    step_ns: int
    values: tuple[float | None, ...]
    requests: int  # stored
    within_ms: float | None = None  # the tightest objective
    having: tuple[tuple[str, str | None], ...] = ()  # attributes of the requests; none: all of the route

    @property
    def group(self) -> tuple[str, str, str | None]:
        """Return the group of the track."""
        return self.service, self.route, self.model

    @property
    def name(self) -> str:
        """Return `POST /predict inference p95`, or `POST /predict lang=tr p50`."""
        having = [f"{key}={value}" if value is not None else f"no {key}" for key, value in self.having]
        return " ".join(part for part in (self.route, *having, self.stage, self.quantile) if part)


class Tracks(NamedTuple):
    """All tracks of a selection, and the number of requests in none."""

    tracks: tuple[Track, ...]
    requests: int  # stored, in all
    since_unix_nano: int
    until_unix_nano: int
    groups: int  # of a service, route and model
    thin: int  # groups with too few requests for any quantile
    left_out: int  # groups beyond the largest
    outside: int  # requests whose times are far from nearly all others: of clocks that were off
    negative: int  # requests that end before they start, which count for nothing
    sampled: bool
    unknown: bool  # the sampling does not determine how many requests each stands for
    within: Mapping[tuple[str, str, str | None], float | None]  # the tightest objective of each group, ms


class _Window(NamedTuple):
    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def ask(source: Source) -> Tracks:
    """Return the tracks of the largest groups of a source."""
    groups = sorted(source.reduce("extent", BY), key=lambda row: (-row["stored"], *(str(row[key]) for key in BY)))
    if not groups:
        return Tracks((), 0, 0, 0, 0, 0, 0, 0, 0, sampled=False, unknown=False, within={})
    window = _Window(min(row["first_unix_nano"] for row in groups), max(row["last_unix_nano"] for row in groups))
    enough = [row for row in groups if row["stored"] - row["negative"] >= LEAST_REQUESTS]
    found = Tracks(
        (),
        sum(row["stored"] for row in groups),
        window.first,
        window.last,
        len(groups),
        len(groups) - len(enough),
        max(len(enough) - MOST_GROUPS, 0),
        0,
        int(sum(row["negative"] for row in groups)),
        sampled=any(row["sampled"] for row in groups),
        unknown=any(row["unknown"] for row in groups),
        within={group_of(row): row["within_ms"] for row in groups},
    )
    if not enough:
        return found
    # Where there are too many groups, the smallest of those that are examined is the least worth reading.
    least = LEAST_REQUESTS if len(enough) <= MOST_GROUPS else enough[MOST_GROUPS - 1]["stored"]
    enough = enough[:MOST_GROUPS]
    window, inside = _looked_at(source, window)
    return found._replace(
        tracks=_tracks(source, window, least, enough),
        since_unix_nano=window.first,
        until_unix_nano=window.last,
        outside=found.requests - inside,
    )


def width(window: _Window) -> int:
    """Return the shortest step in ns of which a window has MOST_STEPS at most."""
    return nice(window.length / MOST_STEPS)


def nice(least_ns: float) -> int:
    """Return the shortest whole step of the clock that is as long."""
    for seconds in _NICE_S:
        if seconds * _S >= least_ns:
            return seconds * _S
    day = _NICE_S[-1] * _S
    return int(-(-least_ns // day)) * day


def _looked_at(source: Source, window: _Window) -> tuple[_Window, int]:
    """Return the window that holds nearly all requests, and how many: a clock that was off must not stretch it."""
    counts: dict[int, int] = {}
    for _ in range(_LOOKS):
        counts = _counts(source, window)
        narrow = _narrowed(window, counts)
        if narrow == window:
            break
        window = narrow
    return window, sum(counts.values())


def _counts(source: Source, window: _Window) -> dict[int, int]:
    """Return how many requests of a window began in each step."""
    step = width(window)
    origin = window.first // step * step
    steps = (window.last - origin) // step + 1
    counts: dict[int, int] = {}
    for row in source.reduce("latency_cells", origin=origin, width=step, columns=steps, bins=1, rows=1):
        counts[row["bucket"]] = counts.get(row["bucket"], 0) + row["stored"]
    return counts


def _rows(source: Source, window: _Window, step: int, least: int) -> list[dict[str, Any]]:
    origin = window.first // step * step
    steps = (window.last - origin) // step + 1
    found = source.reduce("quantiles_over_time", BY, origin=origin, width=step, least=least)
    return [row for row in found if 0 <= row["bucket"] < steps]


def _narrowed(window: _Window, counts: Mapping[int, int]) -> _Window:
    step = width(window)
    origin = window.first // step * step
    steps = (window.last - origin) // step + 1
    if step == _S or steps < LEAST_STEPS:
        return window
    if not counts:
        return window
    wanted, held, kept = _NEARLY_ALL * sum(counts.values()), 0, []
    for bucket in sorted(counts, key=lambda one: -counts[one]):
        kept.append(bucket)
        held += counts[bucket]
        if held >= wanted:
            break
    if max(kept) - min(kept) + 1 > _FEW * steps:
        return window
    first, last = origin + min(kept) * step, origin + (max(kept) + 1) * step - 1
    return _Window(max(window.first, first), min(window.last, last))


def _tracks(
    source: Source,
    window: _Window,
    least: int,
    groups: Sequence[Mapping[str, Any]],
) -> tuple[Track, ...]:
    """Return the tracks, each in the shortest of a few steps of time that holds enough requests for its quantile."""
    finest = width(window)
    widths = list(dict.fromkeys(nice(finest * _COARSER**power) for power in range(_WIDTHS)))
    chosen: dict[int, set[tuple[Any, ...]]] = {}
    for row in groups:
        for quantile, needed in NEEDED.items():
            for step in widths:
                steps = window.length / step
                if steps >= LEAST_STEPS and row["stored"] / max(steps, 1) >= needed:
                    chosen.setdefault(step, set()).add((*(row[key] for key in BY), quantile))
                    break
    made: list[Track] = []
    for step, wanted in sorted(chosen.items()):
        made += _of_rows(_rows(source, window, step, least), window, step, wanted)
    order = {tuple(row[key] for key in BY): place for place, row in enumerate(groups)}
    places = {group_of(row): order[tuple(row[key] for key in BY)] for row in groups}
    within = {group_of(row): row["within_ms"] for row in groups}
    made = [replace(one, within_ms=within[one.group]) for one in made]
    return tuple(sorted(made, key=lambda one: (places[one.group], one.stage is not None, one.stage, one.quantile)))


def _of_rows(
    rows: Iterable[Mapping[str, Any]], window: _Window, step: int, wanted: set[tuple[Any, ...]]
) -> Iterable[Track]:
    origin = window.first // step * step
    steps = (window.last - origin) // step + 1
    made: dict[tuple[Any, ...], tuple[Track, list[float | None]]] = {}
    for row in rows:
        for quantile, needed in NEEDED.items():
            key = (*(row[one] for one in BY), quantile)
            if key not in wanted:
                continue
            stage = None if row["part"] == REQUEST else row["part"]
            place = (*key, stage)
            track, values = made.get(place) or (
                Track(*group_of(row), stage, quantile, origin, step, (), 0),
                [None] * steps,
            )
            value = row[f"{quantile}_ms"]
            if row["stored"] >= max(needed // 2, 1) and value is not None and isfinite(value):
                values[row["bucket"]] = float(value)
            made[place] = replace(track, requests=track.requests + row["stored"]), values
    return [
        replace(track, values=tuple(values))
        for track, values in made.values()
        if sum(value is not None for value in values) >= LEAST_STEPS
    ]


def group_of(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Return service, route and model as people see them."""
    method, path = row["method"], row["path"] or ""
    route = path if not method or path.startswith(f"{method} ") else f"{method} {path}"
    return row["service"] or "", route, row["model"]


# --- The pattern that a series repeats, day by day or week by week: found, and taken out.

_SHORTEST: Final = 4  # values in a period
_FEWEST: Final = 2  # whole periods that make a pattern
_EXPLAINED: Final = 0.4  # correlation that a period must have with the next


def without_pattern(values: Floats, calendar: Sequence[int]) -> tuple[Floats, tuple[int, ...]]:
    """Return values (at equal steps, NaN where there is none) without their periodic part, and its periods in steps.

    Periods of the `calendar` (a day, a week) are taken out if two whole ones are there and one foretells the next.
    """
    found: list[int] = []
    for period in calendar:
        values = _taken_out(values, period, found)
    return values, tuple(found)


def _taken_out(values: Floats, period: int, found: list[int]) -> Floats:
    """Return values without the pattern of a period, which is appended to `found`, or as they are if there is none."""
    if period < _SHORTEST or len(values) < _FEWEST * period:
        return values
    flat = values - _trend(_filled(values), period)
    if _foretold(flat, period) < _EXPLAINED:
        return values
    found.append(period)
    place = np.arange(len(values)) % period
    for _ in range(2):  # the trend of what is left is right at both ends too
        flat = values - _trend(_filled(values - _profile(flat, period)[place]), period)
    return np.asarray(values - _profile(flat, period)[place])


def _filled(values: Floats) -> Floats:
    """Return values with gaps bridged."""
    known = np.isfinite(values)
    if known.all():
        return values
    at = np.arange(len(values))
    return np.interp(at, at[known], values[known])


def _trend(values: Floats, period: int) -> Floats:
    """Return the running median over one period: levels and slopes without the pattern."""
    if period >= len(values):
        return np.full(len(values), np.median(values))
    return np.asarray(median_filter(values, size=period | 1, mode="reflect"))


def _profile(flat: Floats, period: int) -> Floats:
    """Return the median at each place of the period, around 0; 0 where no period has a value."""
    padded = np.full(-(-len(flat) // period) * period, np.nan)
    padded[: len(flat)] = flat
    rows = padded.reshape(-1, period)
    shape = np.zeros(period)
    known = np.isfinite(rows).any(axis=0)
    shape[known] = np.nanmedian(rows[:, known], axis=0)
    return shape - np.median(shape)


def _foretold(flat: Floats, period: int) -> float:
    """Return the correlation of values with those one period later, outliers clipped."""
    middle = float(np.nanmedian(flat))
    limit = 4 * float(np.nanmedian(np.abs(flat - middle))) / 0.6745
    clipped = np.clip(flat, middle - limit, middle + limit) if limit > 0 else flat
    one, two = clipped[:-period], clipped[period:]
    both = np.isfinite(one) & np.isfinite(two)
    one, two = one[both], two[both]
    if len(one) < period // 2 or one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])
