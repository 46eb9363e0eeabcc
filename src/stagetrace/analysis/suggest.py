"""Which objectives could this traffic keep? Thresholds, attainable targets with intervals, budgets of stages."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, takewhile
from math import ceil, floor, log, log10
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Floats
from stagetrace.analysis.attainment import exact_interval
from stagetrace.analysis.base import Source, by_keys, sample_of
from stagetrace.analysis.estimates import Sample
from stagetrace.analysis.quantiles import Binned
from stagetrace.policy.objective import DEFAULT_TARGET, Condition, Objective
from stagetrace.policy.objective import SERVICE_KEY as SERVICE
from stagetrace.policy.policy import Policy
from stagetrace.policy.quantities import Window
from stagetrace.semconv import STAGES

KEYS: Final = ("service", "method", "path")
USUAL: Final = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
MOST_ROWS: Final = 200_000
MOST_GROUPS: Final = 50
_BINS: Final = 64  # to each doubling of time: 1.1 % wide
_READABLE: Final = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # thresholds that people write
_CELLS: Final = 4_096  # of the grid on which distributions are added
_BEYOND: Final = 2.0  # how far the grid reaches, in thresholds
_FEW: Final = 0.01  # of the threshold: a stage of less gets no budget
_LEVEL: Final = 0.975  # one-sided, of the bounds of a 95 % interval
_DAY_S: Final = 86_400
_NS: Final = 10**9
_NOT_IN_NAMES: Final = re.compile(r"[^\w /.{}*:<>$@+-]")  # what a policy's names may not have, and what none needs
_NOT_IN_ROUTES: Final = re.compile(r"[\s;]+")  # nor may its routes have: any text stands for it


class Step(NamedTuple):
    """What an objective with this threshold would have found; the share with its 95 % interval.

    `target`: the highest usual one that the lower end reaches; None where it reaches none.
    """

    within_ms: float
    share: float
    low: float
    high: float
    breaches: float
    breaches_per_day: float | None
    target: float | None


class Budget(NamedTuple):
    """The budget of a stage, and the share of requests that kept to it."""

    stage: str
    budget_ms: float
    kept: float


@dataclass(frozen=True)
class Budgets:
    """Budgets that add up to the threshold at most: a request that keeps to all of them meets its objective.

    Each is what its stage takes in the share `level` of requests. `convolved_ms`: the threshold's quantile of the sum
    of the stages' distributions, as if they were independent; `observed_ms`: that of the requests; `added_ms`: the sum
    of that quantile of each stage, which no request needs to take. `convolved_share`: the share of requests within the
    threshold if the stages were independent.
    """

    stages: tuple[Budget, ...]
    level: float
    observed_ms: float
    convolved_ms: float | None  # None: beyond twice the threshold
    added_ms: float
    convolved_share: float

    @property
    def in_ns(self) -> tuple[tuple[str, int], ...]:
        """Return the budgets as an objective has them."""
        return tuple((one.stage, round(one.budget_ms * 1e6)) for one in self.stages)


@dataclass(frozen=True)
class Suggestion:
    """What is suggested for the requests of one service, method and path.

    `within_ms` and `target` are None where there are too few requests: `needed` would be enough. `days`: how long the
    requests were observed. `effective`: the number of equal requests with as much information as a sample (Kish 1965).
    """

    service: str
    method: str | None
    path: str
    requests: float
    effective: float
    days: float
    sample: Sample
    within_ms: float | None
    target: float | None
    needed: int
    steps: tuple[Step, ...]
    budgets: Budgets | None

    @property
    def name(self) -> str:
        """Return the name of its objective."""
        return f"{self.method} {self.path}" if self.method else self.path


@dataclass(frozen=True)
class Suggested:
    """The suggestions, of the most frequent requests first, and how many kinds of requests are not looked at."""

    suggestions: tuple[Suggestion, ...]
    left: int = 0
    is_cut: bool = False  # there were more rows than are read

    @property
    def usable(self) -> list[Suggestion]:
        """Return those that are objectives."""
        return [one for one in self.suggestions if one.within_ms is not None]


def ask(source: Source, target: float = DEFAULT_TARGET, within_ms: float | None = None) -> Suggested:
    """Return what to suggest for each service, method and path of a source.

    The threshold is the least readable one that `target` of the requests are within, by the lower end of the interval
    of that share. With `within_ms` it is given, and the target is the highest usual one that is attained so.
    """
    rows = source.reduce("histograms", KEYS, bins=_BINS, sizes=False, most=MOST_ROWS)
    of_stages = by_keys(source.reduce("stage_histograms", KEYS, bins=_BINS, sizes=False, most=MOST_ROWS), KEYS)
    extents = {tuple(row[key] for key in KEYS): row for row in source.reduce("extent", KEYS)}
    groups = by_keys(rows, KEYS)
    order = sorted(groups, key=lambda key: (-sum(row["weight"] for row in groups[key]), *map(str, key)))
    found = [
        _suggestion(key, groups[key], of_stages.get(key, []), extents.get(key, {}), target, within_ms)
        for key in order[:MOST_GROUPS]
    ]
    is_cut = MOST_ROWS in (len(rows), sum(map(len, of_stages.values())))
    return Suggested(tuple(found), len(order) - len(found), is_cut)


def policy_of(found: Suggested, window: Window) -> Policy:
    """Return the policy that is suggested: an objective for each kind of requests with enough of them."""
    usable = found.usable
    several = len({one.service for one in usable}) > 1
    names: dict[str, None] = {}
    objectives = []
    for one in usable:
        name = _unused(_NOT_IN_NAMES.sub("_", one.name), one.service, names)
        names[name] = None
        objectives.append(
            Objective(
                name,
                one.method,
                _NOT_IN_ROUTES.sub("*", one.path),
                round((one.within_ms or 0) * 1e6),
                one.target or DEFAULT_TARGET,
                window.length_s,
                calendar=window.calendar,
                conditions=(Condition(SERVICE, one.service),) if several else (),
                stages=() if one.budgets is None else one.budgets.in_ns,
            )
        )
    return Policy(tuple(objectives))


def _unused(name: str, service: str, names: Container[str]) -> str:
    """Return a name that no other objective has: with the service, and else with a number."""
    of_service = f"{name} of {_NOT_IN_NAMES.sub('_', service)}"
    tried = chain((name, of_service), (f"{of_service} {number}" for number in count(2)))
    return next(one for one in tried if one not in names)


def needed(target: float) -> int:
    """Return how many requests are enough to be sure of a target, if all of them are good."""
    return ceil(round(log(1 - _LEVEL) / log(target), 6)) if target < 1 else 0


def _suggestion(
    key: tuple[Any, ...],
    rows: Sequence[Mapping[str, Any]],
    of_stages: Sequence[Mapping[str, Any]],
    extent: Mapping[str, Any],
    target: float,
    within_ms: float | None,
) -> Suggestion:
    service, method, path = key
    whole, sample = _binned(rows), sample_of(rows)
    requests = float(whole.weight.sum())
    effective = requests**2 / float(whole.squares.sum()) if requests else 0.0
    days = max(extent.get("last_unix_nano", 0) - extent.get("first_unix_nano", 0), 0) / _NS / _DAY_S
    none = Suggestion(service, method, path, requests, effective, days, sample, None, None, needed(target), (), None)
    if sample.is_unknown or not requests:
        return none
    if within_ms is None:
        steps = [_step(whole, ms, effective, days) for ms in _thresholds(whole)]
        chosen = next((one for one in steps if one.low >= target), None)
    else:
        steps = [_step(whole, ms, effective, days) for ms in sorted({*_thresholds(whole), within_ms})]
        chosen = next(one for one in steps if one.within_ms == within_ms)
    shown = tuple(one for one in steps if one.share < 1 or one is chosen) or tuple(steps[:1])
    wanted = None if chosen is None else target if within_ms is None else chosen.target
    if chosen is None or wanted is None:
        return replace(none, steps=shown)
    budgets = _budgets(whole, of_stages, chosen.within_ms, wanted)
    return replace(none, within_ms=chosen.within_ms, target=wanted, steps=shown, budgets=budgets)


def _binned(rows: Iterable[Mapping[str, Any]], zeros: float = 0.0) -> Binned:
    """Return a histogram from rows of `histograms` or `stage_histograms`, and `zeros` more requests of no duration."""
    ordered = sorted((row for row in rows if row["low"] is not None), key=lambda row: row["low"])
    values = [[row[name] for row in ordered] for name in ("low", "high", "weight", "squares", "stored")]
    low, high, weight, squares, stored = (
        np.array([*([first] if zeros > 0 else []), *column], dtype=float)
        for first, column in zip((0.0, 0.0, zeros, zeros, zeros), values, strict=True)
    )
    return Binned(low, high, weight, squares, stored)


def _thresholds(whole: Binned) -> list[float]:
    """Return the readable thresholds from below the median of the requests to above the longest."""
    low, high = max(whole.quantile(0.5) or 0.0, 1e-3), float(whole.high.max())
    every = (round(mantissa * 10.0**power, 9) for power in count(floor(log10(low)) - 1) for mantissa in _READABLE)
    found = list(takewhile(lambda ms: ms < high, (ms for ms in every if ms >= low / 2)))
    return [*found, _readable_above(high)]


def _readable_above(ms: float) -> float:
    power = floor(log10(max(ms, 1e-3)))
    choices = (round(mantissa * 10.0**one, 9) for one in (power, power + 1) for mantissa in _READABLE)
    return next(choice for choice in choices if choice >= ms)


def _step(whole: Binned, ms: float, effective: float, days: float) -> Step:
    """Return what a threshold would have found; a bin that it divides counts to neither side's favour."""
    total = float(whole.weight.sum())
    surely = float(whole.weight[whole.high <= ms].sum()) / total
    at_most = float(whole.weight[whole.low <= ms].sum()) / total
    share = _share_within(whole, ms)
    size = max(round(effective), 1)
    low = exact_interval(floor(surely * size + 1e-9), size)[0]
    high = exact_interval(min(ceil(at_most * size - 1e-9), size), size)[1]
    breaches = total * (1 - share)
    target = max((one for one in USUAL if one <= low), default=None)
    return Step(ms, share, low, high, breaches, breaches / days if days > 0 else None, target)


def _share_within(whole: Binned, ms: float) -> float:
    """Return the share of requests within a threshold; a bin that it divides counts by the part below."""
    width = np.maximum(whole.high - whole.low, 1e-12)
    inside = np.clip((ms - whole.low) / width, 0.0, 1.0)
    inside[whole.high <= ms] = 1.0
    return float((whole.weight * inside).sum() / whole.weight.sum())


def _budgets(whole: Binned, of_stages: Sequence[Mapping[str, Any]], within_ms: float, target: float) -> Budgets | None:
    """Return budgets of the stages that add up to the threshold; None where the requests have no stages."""
    total = float(whole.weight.sum())
    stages: dict[str, Binned] = {}
    for (stage,), rows in by_keys([dict(row) for row in of_stages], ("stage",)).items():
        stages[stage] = _binned(rows, max(total - sum(row["weight"] for row in rows), 0.0))
    if not stages:
        return None

    def added(level: float) -> float:
        return sum(one.quantile(level) or 0.0 for one in stages.values())

    low, high = 0.0, 1.0
    for _ in range(40):  # the greatest level at which the quantiles of the stages fit
        middle = (low + high) / 2
        low, high = (middle, high) if added(middle) <= within_ms else (low, middle)
    at_level = {stage: one.quantile(low) or 0.0 for stage, one in stages.items()}
    whole_ms = sum(at_level.values())
    scale = within_ms / whole_ms if whole_ms > 0 else 1.0
    budgets = {stage: _rounded_down(ms * scale) for stage, ms in at_level.items()}
    grid, step = _convolved(list(stages.values()), _BEYOND * within_ms)
    upto = np.cumsum(grid)
    place = int(np.searchsorted(upto, target * (1 - 1e-12)))
    return Budgets(
        tuple(
            Budget(stage, ms, _share_within(stages[stage], ms))
            for stage, ms in sorted(budgets.items(), key=lambda item: -item[1])
            if ms >= _FEW * within_ms and stage in STAGES
        ),
        low,
        whole.quantile(target) or 0.0,
        None if place >= upto.size else place * step,
        added(target),
        float(upto[min(floor(within_ms / step + 0.5), upto.size - 1)]),
    )


def _rounded_down(ms: float) -> float:
    """Return a duration with three digits that count, none above it."""
    if ms <= 0:
        return 0.0
    unit = 10.0 ** (floor(log10(ms)) - 2)
    return round(floor(ms / unit + 1e-9) * unit, 9)


def _convolved(parts: Sequence[Binned], top: float) -> tuple[Floats, float]:
    """Return the distribution of a sum of independent parts, on a grid from 0 to `top` ms, and the grid's step.

    What lies beyond is not on it: the probabilities add up to less than 1 then.
    """
    step = top / _CELLS
    found: Floats = np.zeros(_CELLS)
    found[0] = 1.0
    for part in parts:
        cells = np.rint((part.low + part.high) / 2 / step).astype(np.int64)
        inside = cells < _CELLS
        mass = np.bincount(cells[inside], part.weight[inside] / part.weight.sum(), _CELLS)
        found = np.convolve(found, mass)[:_CELLS]
    return found, step
