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
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from stagetrace.estimates import Counted
    from stagetrace.rules import alert_seen
    from stagetrace.sla.policy import Policy
    from stagetrace.store.base import Reader

Row = dict[str, Any]
SEGMENT: Final = "segment"
MOST_GROUPS: Final = 10_000  # of the reduction: those with the most breaches
_MORE: Final = (
    1.1  # times as many: less is what counts at the edges of windows, which lie between two exports, differ by
)
_NS: Final = 10**9
_KEYS: Final = ("service", NAMESPACE, "objective")


class Found(NamedTuple):
    """The counts, how many groups of the reduction were left out, and whether others have judged requests."""

    counts: alert_seen.Counted
    left: int
    has_others: bool


def count(reader: Reader, policy: Policy, windows: Sequence[float], now_unix_nano: int) -> Found:
    """Return the judged requests of each objective of a policy, service and segment, in each window.

    A service's own counts are taken where it sends them, and they are not fewer than what is stored: it or a Collector
    may sample. Else what is stored counts, by weight; and so do segments.
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
    exact = _Exact.of(reader, names, rows, Selection(starts[0], now_unix_nano))
    for place, start in enumerate(starts, 1):
        within = [row for row in rows if row["band"] >= place]
        counts = _summed(within, names, weights)
        if exact is not None:
            counts |= exact.counts(Selection(start, now_unix_nano), counts)
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
        for group, _ in _counts_by_group(row, names):
            found[group] = max(found[group], row["most"])
    return found


def _summed(
    rows: Iterable[Row], names: Mapping[str, bool], weights: Mapping[Group, float]
) -> dict[Group, Counts | None]:
    """Return the requests that each objective judged; None where they are a sample, and it is not known of how many."""
    found: dict[Group, Counts | None] = {}
    for row in rows:
        for group, counts in _counts_by_group(row, names):
            before = found.setdefault(group, Counts())
            is_unknown = row["unknown"] or (row["sampled"] and weights[group] <= 1)
            found[group] = None if is_unknown or before is None else _sum(before, counts)
    return found


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(one.good + other.good, one.breaches + other.breaches)


def _counts_by_group(row: Row, names: Mapping[str, bool]) -> Iterator[tuple[Group, Counts]]:
    """Yield who judged the requests of a row, and their segment, where the objective has any."""
    name = row["objective"]
    if name in names:
        group, counts = Group(row[NAMESPACE] or "", row["service"], name), Counts(row["good"], row["breaches"])
        yield group, counts
        if names[name] and row[SEGMENT] is not None:
            yield group._replace(segment=row[SEGMENT]), counts


class _Exact(NamedTuple):
    """What services have counted themselves."""

    reader: Reader
    names: Collection[str]  # of objectives
    namespaces: Mapping[str, str]  # by service; counts have none, so a service with several is not among them
    sampled: Collection[Group]  # of which good requests are stored as a sample, by their service

    @classmethod
    def of(cls, reader: Reader, names: Mapping[str, bool], rows: Iterable[Row], longest: Selection) -> _Exact | None:
        """Return them; None where no service of these rows has sent any."""
        if COUNTS not in reader.capabilities:
            return None
        every: dict[str, set[str]] = defaultdict(set)
        sampled: set[Group] = set()
        for row in rows:
            every[row["service"]].add(row[NAMESPACE] or "")
            sampled |= {group for group, _ in _counts_by_group(row, names) if row["sampled"]}
        counting = {one.service for one in reader.counted(longest)}  # type: ignore[attr-defined]
        namespaces = {name: next(iter(of)) for name, of in every.items() if name in counting and len(of) == 1}
        return cls(reader, names, namespaces, sampled) if namespaces else None

    def counts(self, selection: Selection, stored: Mapping[Group, Counts | None]) -> dict[Group, Counts]:
        """Return the counts of a window, with the stored requests that their services had not counted yet."""
        found: dict[Group, Counts] = {}
        for one in self.reader.counted(selection):  # type: ignore[attr-defined]
            own = self._own(one)
            if any(self._has_more(group, of, stored) for group, of in own.items()):  # else what is stored is enough
                self._add_uncounted(one, selection, own)
                found |= {group: of for group, of in own.items() if self._has_all(group, of, stored)}
        return found

    def _own(self, one: Counted) -> dict[Group, Counts]:
        own: dict[Group, Counts] = {}
        for (_, name, word), number in one.counts.items():
            if one.service in self.namespaces and name in self.names:
                group = Group(self.namespaces[one.service], one.service, name)
                counts = Counts(number * (word == GOOD), number * (word == BREACH))
                own[group] = _sum(own.get(group, Counts()), counts)
        return own

    def _add_uncounted(self, one: Counted, selection: Selection, own: dict[Group, Counts]) -> None:
        window = {"service": one.service, "since_ns": one.since_ns, "until_ns": one.until_ns}
        with self.reader.relations(selection) as relations:
            rows = relations.reduce("uncounted", _KEYS, **window)
        for row in rows:
            group = Group(row[NAMESPACE] or "", one.service, row["objective"])
            if group in own:
                own[group] = _sum(own[group], Counts(row["good"], row["breaches"]))

    def _has_more(self, group: Group, own: Counts, stored: Mapping[Group, Counts | None]) -> bool:
        """Return whether clearly more requests were counted than are stored, or these are a sample anyway."""
        of = stored.get(group, Counts())
        return of is None or group in self.sampled or own.judged > _MORE * of.judged

    def _has_all(self, group: Group, own: Counts, stored: Mapping[Group, Counts | None]) -> bool:
        """Return whether counts are to be taken: breaches are all stored, so there cannot be fewer."""
        of = stored.get(group, Counts())
        return of is None or (own.breaches >= of.breaches and self._has_more(group, own, stored))
