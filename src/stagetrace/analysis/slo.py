"""Is the quality of service kept? Attainment, error budget, burn rates and alerts of each objective and route."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from stagetrace.analysis.attainment import (
    EXCLUDED_BY,
    KEYS,
    REDUCTION,
    Counts,
    Exact,
    Target,
    attained,
    budget_left,
    counts,
    is_missed,
    named,
    unused,
    wanted,
)
from stagetrace.analysis.base import Source, by_keys
from stagetrace.analysis.estimates import Attainment
from stagetrace.policy.alert_options import AlertOptions, BurnAlert, can_fire
from stagetrace.policy.objective import DEFAULT_TARGET, DEFAULT_WINDOW_S, Calendar
from stagetrace.policy.objective import Objective as Rule
from stagetrace.policy.policy import Policy
from stagetrace.policy.quantities import window_text

Row = dict[str, Any]
_NS: Final = 10**9
BURNS: Final[Mapping[str, int]] = {"5m": 300, "30m": 1800, "1h": 3600, "6h": 6 * 3600, "3d": 3 * 86_400}  # s
SHOWN: Final = ("5m", "1h", "6h", "3d")
RATE: Final = "1h"  # the burn rate by which the remaining time of the budget is computed
MOST: Final = 2_000  # groups, those with the most breaches
DEFAULT: Final = Target(DEFAULT_TARGET, DEFAULT_WINDOW_S)
_NO_ALERTS: Final = AlertOptions(burns=())
_ALL_OF_IT: Final = 0.99  # share of a window from which on the store holds it whole


class Burn(NamedTuple):
    """How often the error budget would be spent if the whole window went as this part of it: 1 spends it just so.

    Out of a sample it lies within low and high with 95 % confidence.
    """

    rate: float
    low: float
    high: float


class Alert(NamedTuple):
    """Whether both windows burn faster than `factor`; None where that is unknown."""

    factor: float
    long: str
    short: str
    fires: bool | None
    can_fire: bool  # False: even if all requests were breaches, they would not burn so fast


@dataclass(frozen=True)
class Objective:
    """How one objective did, of one service, route and segment, in its window. Unknown values are None."""

    objective: str | None
    service: str
    route: str
    segment: str | None
    target_text: str | None  # as entry spans carry it
    target: Target
    since_unix_nano: int  # of the window
    until_unix_nano: int
    held_s: float  # how much of the window the store has requests of this service from
    counts: Counts
    attained: Attainment | None
    missed: bool | None
    budget_left: float | None  # part of the error budget; negative: overspent
    burn: Mapping[str, Burn | None]  # by the windows of `BURNS`, and those of its alerts
    lasts_s: float | None  # until the budget is spent at the burn rate of `RATE`; None: not known, or never
    alerts: tuple[Alert, ...]
    first_unix_nano: int  # requests under this objective, of all that was read
    last_unix_nano: int
    description: str = ""
    is_in_policy: bool | None = None  # None: there is no policy to compare with

    @property
    def whole_text(self) -> str:
        """Return the objective with its target, where that is not the default."""
        return f"{self.objective or '(no objective)'}{f' for {self.target_text}' if self.target_text else ''}"

    @property
    def window_s(self) -> float:
        """Return how long the window is."""
        return (self.until_unix_nano - self.since_unix_nano) / _NS

    @property
    def is_held(self) -> bool:
        """Return whether the store reaches back over the window."""
        return self.held_s >= _ALL_OF_IT * self.window_s


class Change(NamedTuple):
    """A route whose objective became another one, after the last request under the one before."""

    service: str
    route: str
    before: str
    after: str
    at_unix_nano: int


@dataclass(frozen=True)
class Found:
    """All objectives, the one with the least budget left first; and the unjudged requests."""

    objectives: tuple[Objective, ...]
    unjudged: Counts
    changes: tuple[Change, ...] = ()
    longest_s: float = 0  # the longest window of an objective
    left: int = 0  # groups beyond MOST, with fewer breaches each
    unused: tuple[str, ...] = ()  # objectives of the policy without a request

    @property
    def missed(self) -> list[Objective]:
        """Return those that were missed."""
        return [one for one in self.objectives if one.missed]

    @property
    def undetermined(self) -> list[Objective]:
        """Return those whose result is unknown: no request was judged, or the sampling is not known."""
        return [one for one in self.objectives if one.attained is None]


@dataclass(frozen=True)
class _Windows:
    """Where the windows begin that requests are counted in, all of which end at `until_ns`."""

    until_ns: int
    since_ns: int | None  # the same for all objectives, if given
    targets: Iterable[Target]
    alerts: Iterable[BurnAlert]
    cuts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        starts = {*map(self.start, _burn_windows(self.alerts).values()), *map(self.of, self.targets)}
        object.__setattr__(self, "cuts", sorted(starts | ({self.since_ns} if self.since_ns is not None else set())))

    def start(self, length_s: float) -> int:
        return max(0, self.until_ns - round(length_s * _NS))

    def of(self, target: Target) -> int:
        if self.since_ns is not None:
            return self.since_ns
        return self.start(target.window_s) if target.calendar is None else began_ns(target.calendar, self.until_ns)

    @property
    def earliest(self) -> int:
        """Return from when on requests make an objective one to be listed."""
        return self.cuts[0] if self.since_ns is None else self.since_ns

    def rows(self, rows: Iterable[Row], start: int) -> list[Row]:
        band = self.cuts.index(start) + 1
        return [row for row in rows if row["band"] >= band]


def ask(
    source: Source,
    until_ns: int,
    since_ns: int | None = None,
    by: str | None = None,
    exact: Exact | None = None,
    policy: Policy | None = None,
) -> Found:
    """Return how each objective does, in its own window up to `until_ns` or, if given, from `since_ns` on.

    `source` holds what began before `until_ns`, at least three days of it, and `longest_s` of the answer, or else it
    is to be asked again with more. `by`: a column or attribute of which each value is a segment. `exact` is asked
    where requests were sampled. Targets are those of `policy` where it has the objective, else the recorded ones;
    alerts are those of `policy` too: without one nobody evaluates any.
    """
    alerts = burn_alerts(policy)
    keys, known = ([by] if by else []) + list(KEYS), named(policy)
    windows = _Windows(until_ns, since_ns, (DEFAULT,), alerts)
    rows = source.reduce(REDUCTION, keys, cuts=windows.cuts, most=MOST)
    targets = {wanted(known, row["objective"], row["target"]).target for row in rows if _is_judged(row)}
    if since_ns is None and not set(map(windows.of, targets)) <= set(windows.cuts):
        windows = _Windows(until_ns, None, (DEFAULT, *targets), alerts)
        rows = source.reduce(REDUCTION, keys, cuts=windows.cuts, most=MOST)
    left = max((row["groups"] for row in rows), default=0) - len(by_keys(rows, keys))
    rows = [{**row, "target": wanted(known, row["objective"], row["target"]).text} for row in rows]
    oldest: dict[str, int] = defaultdict(lambda: until_ns)
    for row in rows:
        oldest[row["service"]] = min(oldest[row["service"]], row["first_unix_nano"])
    made = [
        _objective(
            (_text(key[0]) if by else None, *key[-4:]),
            _Group(of, windows, key[-4:-1], exact, known, _alerts_of(policy, (known or {}).get(key[-2]))),
            oldest,
        )
        for key, of in by_keys(rows, keys).items()
        if any(map(_is_judged, windows.rows(of, windows.earliest)))
    ]
    changes = _changes(made)
    gone = {(one.service, one.route, one.before) for one in changes}
    kept = [one for one in made if one.counts.judged or (one.service, one.route, one.whole_text) not in gone]
    start = windows.start(DEFAULT_WINDOW_S) if since_ns is None else since_ns
    return Found(
        tuple(sorted(kept, key=_worst_first)),
        _unjudged(row for row in windows.rows(rows, start) if not _is_judged(row)),
        changes,
        max(((until_ns - windows.of(one)) / _NS for one in targets), default=0),
        left,
        unused(known, (row["objective"] for row in rows)),
    )


def _burn_windows(alerts: Iterable[BurnAlert]) -> Mapping[str, int]:
    """Return the windows of `BURNS` and those of the alerts, in seconds by their name."""
    own = (length for one in alerts for length in (one.long_s, one.short_s))
    return {**BURNS, **{window_text(length): length for length in own}}


def burn_alerts(policy: Policy | None) -> tuple[BurnAlert, ...]:
    """Return the burn alerts that any objective has: what `ask` looks back for."""
    if policy is None:
        return ()
    found = (one for options in (policy.alerts, *map(policy.alerts_of, policy.objectives)) for one in options.burns)
    return tuple(dict.fromkeys(found))


def _alerts_of(policy: Policy | None, rule: Rule | None) -> AlertOptions:
    """Return the alerts of an objective: what a policy does not have, nobody evaluates beside it."""
    return _NO_ALERTS if policy is None or rule is None else policy.alerts_of(rule)


def _unjudged(rows: Iterable[Row]) -> Counts:
    """Return the requests that no objective judged: one that another one judged too is none of them."""
    found = list(rows)
    excluded = sum(row[name] for row in found for name in EXCLUDED_BY)
    return counts(found)._replace(requests=float(sum(row["once"] for row in found)), excluded=float(excluded))


def _text(value: object) -> str | None:
    """Return the value of a column as an attribute has it."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_judged(row: Row) -> bool:
    return bool(row["good"] + row["breaches"] > 0)


def _worst_first(one: Objective) -> tuple[Any, ...]:
    left = one.budget_left
    if left is None and one.attained is not None:  # no budget at all
        left = one.attained.value - 1
    return (left is None, left or 0, one.service, one.route, one.objective or "", one.segment or "")


class _Group(NamedTuple):
    """The rows of one objective, service, route and segment."""

    rows: Sequence[Row]
    windows: _Windows
    key: tuple[str, str, str | None]
    exact: Exact | None
    known: Mapping[str, Rule] | None  # the objectives of the policy
    alerts: AlertOptions

    def counts(self, start: int) -> Counts:
        """Return the outcomes of its requests from a start on: the service's own counts, or else weighted ones."""
        found = counts(self.windows.rows(self.rows, start))
        if self.exact is None or not found.is_sampled:
            return found
        return self.exact(start).get(self.key, found)


def _objective(key: tuple[Any, ...], group: _Group, oldest: Mapping[str, int]) -> Objective:
    segment, service, route, objective, text = key
    rows, windows = group.rows, group.windows
    target, _, description, is_in_policy = wanted(group.known, objective, text)
    since = windows.of(target)
    own = group.counts(since)
    found = attained(own)
    left = None if found is None else budget_left(found.value, target)
    most = max(row["most"] for row in rows)
    within = {name: group.counts(windows.start(length)) for name, length in _burn_windows(group.alerts.burns).items()}
    burn = {name: _burn(of, target, most) for name, of in within.items()}
    enough = {name for name, of in within.items() if of.judged >= group.alerts.min_requests}
    return Objective(
        objective,
        service,
        route,
        segment,
        text,
        target,
        since,
        windows.until_ns,
        max(0, windows.until_ns - max(since, oldest[service])) / _NS,
        own,
        found,
        is_missed(found, target),
        left,
        burn,
        _lasts(left, burn[RATE], (windows.until_ns - since) / _NS),
        tuple(_alert(target, burn, enough, one) for one in group.alerts.burns),
        min(row["first_unix_nano"] for row in rows),
        max(row["last_unix_nano"] for row in rows),
        description,
        is_in_policy,
    )


def _burn(found: Counts, target: Target, most: float) -> Burn | None:
    """Return a burn rate; `most` is the greatest weight of any request of the objective, in this window or not."""
    if target.budget <= 0:
        return None
    is_weighted = found.is_sampled and not found.is_counted
    known = attained(found._replace(most=most) if is_weighted else found)
    if known is None:
        return None
    low, high = (known.high, known.low) if known.is_estimate else (known.value, known.value)
    return Burn(*((1 - share) / target.budget for share in (known.value, low, high)))


def _lasts(left: float | None, burn: Burn | None, window_s: float) -> float | None:
    if left is None:
        return None
    if left <= 0:
        return 0.0
    return None if burn is None or burn.rate <= 0 else left * window_s / burn.rate


def _alert(target: Target, burn: Mapping[str, Burn | None], enough: Container[str], one: BurnAlert) -> Alert:
    """Return whether an alert fires; `enough`: the windows with enough judged requests for one."""
    factor, long, short = one.factor, window_text(one.long_s), window_text(one.short_s)
    both = [one for one in (burn[long], burn[short]) if one is not None]
    fires: bool | None = None
    if long not in enough or any(one.high <= factor for one in both):
        fires = False
    elif len(both) == 2 and all(one.low > factor for one in both):  # noqa: PLR2004 -- two windows
        fires = True
    return Alert(factor, long, short, fires, can_fire(factor, target.share))


def _changes(made: Sequence[Objective]) -> tuple[Change, ...]:
    """Return where one objective of a route ended before another one began."""
    routes: dict[tuple[str, str], dict[str, tuple[int, int]]] = defaultdict(dict)
    for one in made:
        of = routes[one.service, one.route]
        first, last = of.get(one.whole_text, (one.first_unix_nano, one.last_unix_nano))
        of[one.whole_text] = (min(first, one.first_unix_nano), max(last, one.last_unix_nano))
    found = []
    for (service, route), of in sorted(routes.items()):
        spans = sorted(of.items(), key=lambda item: item[1])
        for (before, (_, last)), (after, (first, _)) in pairwise(spans):
            if last < first:
                found.append(Change(service, route, before, after, first))
    return tuple(found)


_IN_QUARTER: Final = 3


def began_ns(calendar: Calendar, until_ns: int) -> int:
    """Return when the period began that the last moment before `until_ns` is in, in ns since 1970.

    So a period that ends at `until_ns` is meant whole.
    """
    zone = ZoneInfo(calendar.timezone)
    last = datetime.fromtimestamp(max(until_ns - 1, 0) // _NS, zone)
    first = last.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if calendar.unit == "week":
        first -= timedelta(days=first.weekday())
    elif calendar.unit == "month":
        first = first.replace(day=1)
    elif calendar.unit == "quarter":
        first = first.replace(day=1, month=first.month - (first.month - 1) % _IN_QUARTER)
    elif calendar.unit == "year":
        first = first.replace(day=1, month=1)
    return max(0, int(first.timestamp())) * _NS
