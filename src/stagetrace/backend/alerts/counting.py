"""How many requests each objective judged in the windows that end now: by the store's reductions, in one query."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.analysis.attainment import REDUCTION
from stagetrace.backend.alerts.replayed import NAMESPACE
from stagetrace.rules.alert_seen import Group
from stagetrace.rules.burn import Counts
from stagetrace.sla.objective import BREACH
from stagetrace.sla.verdict import GOOD
from stagetrace.store.base import COUNTS, Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stagetrace.rules import alert_seen
    from stagetrace.sla.policy import Policy
    from stagetrace.store.base import Reader

Row = dict[str, Any]
SEGMENT: Final = "segment"
MOST_GROUPS: Final = 10_000  # of the reduction: those with the most breaches
_NS: Final = 10**9
_KEYS: Final = ("service", NAMESPACE, "objective")


class Found(NamedTuple):
    """The counts, how many groups of the reduction were left out, and whether others have judged requests."""

    counts: alert_seen.Counted
    left: int
    has_others: bool


def count(reader: Reader, policy: Policy, windows: Sequence[float], now_unix_nano: int) -> Found:
    """Return the judged requests of each objective of a policy, service and segment, in each window.

    Where a service samples, its own counts are taken, as far as it has sent them; else what is stored, by weight. Of
    segments it sends none.
    """
    segmented = {one.name for one in policy.objectives if one.segment_by}
    keys = [*_KEYS, *([SEGMENT] if segmented else [])]
    cuts = {max(0, now_unix_nano - round(window * _NS)): window for window in windows}
    starts = sorted(cuts)
    with reader.relations(Selection(starts[0], now_unix_nano)) as relations:
        rows = relations.reduce(REDUCTION, keys, cuts=starts, most=MOST_GROUPS)
    names = {one.name: one.name in segmented for one in policy.objectives if not one.excludes}
    found: dict[Group, dict[float, Counts | None]] = defaultdict(dict)
    weights = _weights(rows, names)
    for place, start in enumerate(starts, 1):
        within = [row for row in rows if row["band"] >= place]
        counts = _summed(within, names, weights)
        if COUNTS in reader.capabilities and any(row["sampled"] for row in within):
            counts |= _exact(reader, Selection(start, now_unix_nano), counts)
        for group, of in counts.items():
            found[group][cuts[start]] = of
    places = {tuple(row[key] for key in keys) for row in rows}
    left = max((row["groups"] for row in rows), default=0) - len(places)
    return Found(dict(found), left, any(row["objective"] not in names for row in rows))


def added(one: alert_seen.Counted, other: alert_seen.Counted) -> dict[Group, Mapping[float, Counts | None]]:
    """Return the sum of two counts of different requests."""
    return {
        group: {
            window: _sum_known(*(counts.get(group, {}).get(window, Counts()) for counts in (one, other)))
            for window in one.get(group, {}).keys() | other.get(group, {}).keys()
        }
        for group in one.keys() | other.keys()
    }


def _sum_known(one: Counts | None, other: Counts | None) -> Counts | None:
    return None if one is None or other is None else _sum(one, other)


def _weights(rows: Iterable[Row], names: Mapping[str, bool]) -> dict[Group, float]:
    """Return the greatest weight that a request of each group can have, in these windows."""
    found: dict[Group, float] = defaultdict(lambda: 1.0)
    for row in rows:
        for group, _ in _judged(row, names):
            found[group] = max(found[group], row["most"])
    return found


def _summed(
    rows: Iterable[Row], names: Mapping[str, bool], weights: Mapping[Group, float]
) -> dict[Group, Counts | None]:
    """Return the requests that each objective judged; None where they are a sample, and it is not known of how many."""
    found: dict[Group, Counts | None] = {}
    for row in rows:
        for group, counts in _judged(row, names):
            before = found.setdefault(group, Counts())
            is_unknown = row["unknown"] or (row["sampled"] and weights[group] <= 1)
            found[group] = None if is_unknown or before is None else _sum(before, counts)
    return found


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(one.good + other.good, one.breaches + other.breaches)


def _judged(row: Row, names: Mapping[str, bool]) -> Iterator[tuple[Group, Counts]]:
    """Yield who judged the requests of a row, and their segment, where the objective has any."""
    name = row["objective"]
    if name in names:
        group, counts = Group(row[NAMESPACE] or "", row["service"], name), Counts(row["good"], row["breaches"])
        yield group, counts
        if names[name] and row[SEGMENT] is not None:
            yield group._replace(segment=row[SEGMENT]), counts


def _exact(reader: Reader, selection: Selection, stored: Mapping[Group, Counts | None]) -> dict[Group, Counts]:
    """Return what services have counted in a window themselves, with the stored requests that they had not yet."""
    found: dict[Group, Counts] = {}
    namespaces: dict[str, set[str]] = defaultdict(set)
    for group in stored:
        namespaces[group.service].add(group.namespace)
    for one in reader.counted(selection):  # type: ignore[attr-defined]  # of the capability COUNTS
        if len(namespaces[one.service]) != 1:  # counts have no namespace
            continue
        (namespace,) = namespaces[one.service]
        own: dict[Group, Counts] = defaultdict(Counts)
        for (_, name, word), number in one.counts.items():
            group = Group(namespace, one.service, name)
            own[group] = _sum(own[group], Counts(number * (word == GOOD), number * (word == BREACH)))
        window = {"service": one.service, "since_ns": one.since_ns, "until_ns": one.until_ns}
        with reader.relations(selection) as relations:
            besides = relations.reduce("uncounted", _KEYS, **window)
        for row in besides:
            group = Group(namespace, one.service, row["objective"])
            if group in own and (row[NAMESPACE] or "") == namespace:
                own[group] = _sum(own[group], Counts(row["good"], row["breaches"]))
        found |= {group: of for group, of in own.items() if group in stored and _has_all(of, stored[group])}
    return found


def _has_all(own: Counts, stored: Counts | None) -> bool:
    """Return whether counts of a service are not fewer than what is stored, of which breaches are all there."""
    return stored is None or own.breaches >= stored.breaches
