"""What is probably not meant as it stands in a policy that can be read. Pure: a policy in, findings out.

An error is what cannot be meant, as an objective that can never judge is, or an alert that can never fire.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.policy.alert_options import AlertOptions, can_fire, nearest_factor
from stagetrace.policy.objective import BAGGAGE, BOUNDS, HEADER, OTHER_SEGMENT, WEBSOCKET, glob
from stagetrace.policy.policy_keys import SHORT_KEYS
from stagetrace.policy.yaml_nodes import At, place_of
from stagetrace.text import is_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from stagetrace.policy.objective import Condition, Objective

    Places = Sequence[Mapping[str, At]]

ERROR: Final = "error"
WARNING: Final = "warning"
MOST_FINDINGS: Final = 100
# Pairs of objectives that are compared: some seconds. Policies of thousands of objectives have more.
MOST_PAIRS: Final = 1_000_000
MOST_SERIES: Final = 10_000  # as many combinations as a process counts
_UNBOUNDED: Final = re.compile(
    r"(trace|span|request|correlation|session|user|customer|account|message|order|job|thread)[._-]?id\b|uuid|guid"
    r"|e-?mail|\bip\b|client\.(address|port)|network\.peer\.|user_agent\.original|timestamp|\burl\.(path|full|query)"
    r"|x-forwarded-for|traceparent",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """One thing that is probably not meant: where it stands, and what fixes it."""

    at: At
    level: str  # ERROR or WARNING
    what: str
    fix: str

    def text(self, where: str) -> str:
        """Return it in a line, as compilers do."""
        return f"{where}:{self.at.line}:{self.at.column}: {self.level}: {self.what}: {self.fix}"


def lint(
    objectives: Sequence[Objective],
    alerts: AlertOptions,
    places: Places,
    alert_places: Mapping[str, At] | None = None,
) -> tuple[list[Finding], int]:
    """Return what is found in a policy in the order of its text, and how many more findings there are.

    `places` are those of `policy_file.Document`, of each objective.
    """
    found: list[Finding] = []
    checks: Iterable[Callable[[Sequence[Objective], Places], Iterator[Finding]]] = (
        _same_names, _unreachable, _find_implied, _budgets, _bounds, _overrides, _keys, _segments
    )  # fmt: skip
    for check in checks:
        found += check(objectives, places)
    found += _alerts(objectives, alerts, places, alert_places or {})
    found.sort(key=lambda one: (one.at, one.level))
    return found[:MOST_FINDINGS], max(len(found) - MOST_FINDINGS, 0)


def inline_places(text: str) -> list[dict[str, At]]:
    """Return the places of the rules of an inline policy."""
    found, offset = [], 0
    for part in text.split(";"):
        if part.strip():
            found.append({"": place_of(text, offset + len(part) - len(part.lstrip()))})
        offset += len(part) + 1
    return found


def _at(places: Mapping[str, At], *keys: str) -> At:
    return next((places[key] for key in keys if key in places), places[""])


def _same_names(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find names that two objectives have; in files there are none."""
    first: dict[str, At] = {}
    for one, at in zip(objectives, places, strict=True):
        if one.name in first:
            what = f"{one.name!r} is the name of the objective in {_line(first[one.name])}, too"
            yield Finding(at[""], ERROR, what, "remove one, or name them in a policy file")
        first.setdefault(one.name, at[""])


def _line(at: At) -> str:
    return f"line {at.line}, column {at.column}"


def _unreachable(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find objectives all of whose requests an earlier one judges alone."""
    by_route: dict[str, list[int]] = defaultdict(list)  # of earlier objectives without a glob
    globs: list[int] = []
    left = MOST_PAIRS
    for place, one in enumerate(objectives):
        earlier = globs if "*" in one.route else [*by_route[one.route], *globs]
        left -= len(earlier)
        if left < 0:
            what = f"only the objectives before this one are compared with each other, {place} of {len(objectives)}"
            yield Finding(places[place][""], WARNING, what, "use globs in place of many objectives")
            return
        cover = next((number for number in sorted(earlier) if _hides(objectives[number], one)), None)
        if cover is not None:
            name, at = objectives[cover].name, places[cover][""]
            but = " but WebSockets" if _is_but_for_websockets(objectives[cover], one) else ""
            what = f"{one.name!r} can never judge: {name!r} in {_line(at)} judges all of its requests{but}"
            yield Finding(places[place][""], ERROR, what, "put it in front of that, or remove it")
        (globs if "*" in one.route else by_route[one.route]).append(place)


def _hides(first: Objective, second: Objective) -> bool:
    """Return whether the first one, in front, judges all requests of the second one alone."""
    is_alone = not first.continues or _base(first) == _base(second)
    if not is_alone or not covers(first.route, second.route):
        return False
    if first.method not in (None, second.method):
        return False
    if first.method is None and second.method == WEBSOCKET and "*" in first.route:
        return False
    return all(any(covers_condition(wide, narrow) for narrow in second.conditions) for wide in first.conditions)


def _base(one: Objective) -> str:
    return one.base or one.name


def _is_but_for_websockets(first: Objective, second: Objective) -> bool:
    return first.method is second.method is None and "*" in first.route and "*" not in second.route


def covers(wide: str, narrow: str) -> bool:
    """Return whether a glob matches each text that another one does."""
    return glob(wide).fullmatch(narrow.replace("*", "\0")) is not None  # which stands for any text


def covers_condition(wide: Condition, narrow: Condition) -> bool:
    """Return whether a condition holds wherever another one does."""
    return wide.key == narrow.key and covers(wide.glob, narrow.glob)


def excludes_each_other(one: str, other: str) -> bool:
    """Return whether no text matches both globs, as far as their texts before and after the first `*` show it."""
    if "*" not in one:
        return glob(other).fullmatch(one) is None
    if "*" not in other:
        return glob(one).fullmatch(other) is None
    begins = [text.partition("*")[0] for text in (one, other)]
    ends = [text.rpartition("*")[2] for text in (one, other)]
    begin, end = min(begins, key=len), min(ends, key=len)
    return not (all(text.startswith(begin) for text in begins) and all(text.endswith(end) for text in ends))


def _find_implied(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find pairs that judge the same requests, of which one asks for less than the other and so says nothing."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, one in enumerate(objectives):
        if not one.excludes:
            match = (one.method, one.route, frozenset(one.conditions), one.window_s, one.calendar, _others(one))
            groups[match].append(place)
    for group in groups.values():
        for first, second in combinations(group[:50], 2):
            if not objectives[first].continues or _base(objectives[first]) == _base(objectives[second]):
                continue
            tight, loose = sorted((first, second), key=lambda place: objectives[place].within_ns)
            if objectives[tight].target >= objectives[loose].target:
                yield _contradiction(objectives[tight], objectives[loose], places[tight], places[loose])


def _others(one: Objective) -> tuple[object, ...]:
    """Return what besides `within` and the target makes a request a breach."""
    return (*(getattr(one, f"{key}_ns") for key in BOUNDS[1:]), one.disconnect, one.errors, one.deadline, one.warmup_s)


def _contradiction(tight: Objective, loose: Objective, at: Mapping[str, At], other: Mapping[str, At]) -> Finding:
    asks = [f"{100 * one.target:.12g}% within {_ms(one.within_ns)}" for one in (tight, loose)]
    what = (
        f"{loose.name!r} contradicts {tight.name!r} in {_line(at[''])}, of the same requests: "
        f"{asks[1]} is less than {asks[0]}, and never missed alone"
    )
    return Finding(_at(other, "within", "target"), ERROR, what, "let the higher share have the longer bound")


def _budgets(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find budgets of stages that do not fit into the bound."""
    for one, at in zip(objectives, places, strict=True):
        total = sum(budget for _, budget in one.stages)
        if total > one.within_ns and (one.base is None or "stages" in at or "within" in at):
            what = f"the budgets of stages are {_ms(total)} in all, more than the {_ms(one.within_ns)} of the whole"
            yield Finding(_at(at, "stages", "within"), WARNING, what, "reduce them")


def _bounds(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find bounds of parts of a request that `within` makes superfluous."""
    for one, at in zip(objectives, places, strict=True):
        for key in BOUNDS[1:]:
            bound = getattr(one, f"{key}_ns")
            if bound is not None and bound >= one.within_ns and (one.base is None or key in at or "within" in at):
                what = f"{key} {_ms(bound)} is never missed alone: the whole request has {_ms(one.within_ns)}"
                yield Finding(_at(at, key, "within"), WARNING, what, f"use less than that, or remove {key}")


def _overrides(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find overrides that are looser than their base, or can never match."""
    bases = {one.name: one for one in objectives if one.base is None}
    for one, at in zip(objectives, places, strict=True):
        base = bases.get(one.base or "")
        if base is None:
            continue
        for condition in one.conditions[len(base.conditions) :]:
            clash = next((own for own in base.conditions if _excludes(own, condition)), None)
            if clash is not None:
                both = f"{condition.glob} and {clash.glob}"
                what = f"the override never matches: {condition.key} would have to be {both}"
                yield Finding(_at(at, "when"), ERROR, what, "remove it, or change when")
        if one.excludes:
            continue
        if one.within_ns > base.within_ns:
            what = f"the override is looser than {base.name!r}: {_ms(one.within_ns)}, not {_ms(base.within_ns)}"
            yield Finding(_at(at, "within"), WARNING, what, "let the base be the loosest, if that is not meant")
        if one.target < base.target and one.within_ns >= base.within_ns:
            what = f"the override is looser than {base.name!r}: {100 * one.target:.12g}%, not {100 * base.target:.12g}%"
            yield Finding(_at(at, "target"), WARNING, what, "let the base be the loosest, if that is not meant")


def _excludes(one: Condition, other: Condition) -> bool:
    return one.key == other.key and excludes_each_other(one.glob, other.glob)


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:g} ms"


def _keys(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find keys that are secret, or no names of attributes."""
    for one, at in zip(objectives, places, strict=True):
        keys = [*((key, ("when", "match")) for key in one.keys), *((key, ("segments",)) for key in one.segment_by)]
        for key, where in keys:
            name = key.removeprefix(HEADER).removeprefix(BAGGAGE)
            if key != name and is_secret(name) and (one.base is None or where[0] in at):
                what = f"{key} is secret, and would stand in names, spans and metrics"
                yield Finding(_at(at, *where), ERROR, what, "use another key")
            if key in SHORT_KEYS and (one.base is None or where[0] in at):
                what = f"{key} is no attribute of requests"
                yield Finding(_at(at, *where), WARNING, what, f"write {SHORT_KEYS[key]}")


def _segments(objectives: Sequence[Objective], places: Places) -> Iterator[Finding]:
    """Find segments without end."""
    total = 0
    for one, at in zip(objectives, places, strict=True):
        is_own = one.base is None or "segments" in at
        for key in one.segment_by if is_own else ():
            if _UNBOUNDED.search(key):
                what = f"{key} has a value for nearly each request: after {one.max_segments} all are {OTHER_SEGMENT!r}"
                yield Finding(_at(at, "segments"), WARNING, what, "use a key with few values, such as a tier")
        before, total = total, total + (one.max_segments if one.segment_by else 0)
        if before <= MOST_SERIES < total:
            what = f"up to here there are up to {total} segments, and a process counts {MOST_SERIES} combinations"
            yield Finding(_at(at, "segments"), WARNING, what, "reduce max")


def _alerts(
    objectives: Sequence[Objective], alerts: AlertOptions, places: Places, alert_places: Mapping[str, At]
) -> Iterator[Finding]:
    """Find alerts that can never fire, and objectives without any budget."""
    judging = [(one, at) for one, at in zip(objectives, places, strict=True) if not one.excludes]
    for one, at in judging:
        if one.target >= 1 and (one.alerts or alerts).burns:
            what = f"{one.name!r} has no error budget with a target of 100%: each breach is an alert"
            yield Finding(_at(at, "target"), WARNING, what, "use less, such as 99.99%")
    shared = [(one, at) for one, at in judging if one.alerts is None]
    yield from _never(alerts, shared, alert_places.get("burn"))
    for one, at in judging:
        if one.alerts is not None:
            yield from _never(one.alerts, [(one, at)], at.get("alerts"))
    for one, at in judging:
        longest = max((burn.long_s for burn in (one.alerts or alerts).burns), default=0)
        if longest > one.window_s:
            what = f"the alerts look back {longest} s, longer than the window of {one.name!r}, {one.window_s:g} s"
            yield Finding(_at(at, "window"), WARNING, what, "use a longer window, or shorter ones in alerts: burn")


def _never(
    alerts: AlertOptions, objectives: Sequence[tuple[Objective, Mapping[str, At]]], place: At | None
) -> Iterator[Finding]:
    """Find alerts of these objectives that can never fire."""
    level = WARNING if alerts.burns == AlertOptions().burns else ERROR  # nobody wrote the default ones
    for burn in alerts.burns:
        never = [(one, at) for one, at in objectives if one.target < 1 and not can_fire(burn.factor, one.target)]
        if not never:
            continue
        one, at = min(never, key=lambda pair: pair[0].target)
        others = f" and {len(never) - 1} more" if len(never) > 1 else ""
        what = (
            f"the alert with factor {burn.factor:g} can never fire for {one.name!r}{others}: "
            f"with a target of {100 * one.target:.12g}%, the budget burns {1 / (1 - one.target):.4g} times at most"
        )
        fix = f"write a factor of at most {nearest_factor(one.target):g}, for it alone in alerts of the objective"
        yield Finding(at[""] if place is None else place, level, what, fix)
