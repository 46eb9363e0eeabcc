"""How many requests each objective judged in the windows that end now, with those that no process judged."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.attainment import REDUCTION
from stagetrace.analysis.replay import UNKNOWN, replay, stored
from stagetrace.policy.objective import BREACH, EXCLUDED
from stagetrace.policy.verdict import GOOD
from stagetrace.rules.alerts import Group
from stagetrace.rules.burn import Counts
from stagetrace.semconv import as_text, number
from stagetrace.store.base import COUNTS, Selection
from stagetrace.store.entries import segment
from stagetrace.store.reductions import probability_of, weight_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from stagetrace.analysis.estimates import Counted
    from stagetrace.policy.policy import Policy
    from stagetrace.rules import alerts
    from stagetrace.store.base import Reader, SpanRow
    from stagetrace.store.local.reader import LocalReader

# --- Requests that no objective of the policy has judged in their process: judged here, once each, as they are stored.
#
# Services without a policy, or with another one, send them. They are counted by their start, in buckets of time.

NAMESPACE: Final = "service.namespace"
MOST: Final = 20_000  # requests that one look judges
MOST_REPLAYED_GROUPS: Final = 1_000
_IN_SHORTEST: Final = 10  # buckets
_MOST_UNKNOWN: Final = 0.01  # of the requests, above which nothing is said of them

# --- How many requests each objective judged in the windows that end now: by the store's reductions, in one query.

_NS: Final = 10**9


class _Bucket(NamedTuple):
    """What became of the requests of one objective and service that began in one part of time, by weight."""

    good: float = 0
    breaches: float = 0
    unknown: float = 0

    def __add__(self, other: object) -> _Bucket:
        return _Bucket(*map(sum, zip(self, other, strict=True))) if isinstance(other, _Bucket) else NotImplemented


class Replayed:
    """The requests that one policy has not judged, in the windows that end now. Used by one thread."""

    def __init__(self, policy: Policy, windows: Sequence[float], most: int = MOST) -> None:
        """Count for this policy, up to the longest of these windows."""
        self._policy = policy
        self._names = sorted({one.name for one in policy.objectives})
        self._windows = windows
        self._most = most
        self._width = max(1, round(min(windows, default=1) / _IN_SHORTEST * _NS))
        self._cursor: int | None = None
        self._whole_from = 0  # all requests that began since have been judged
        self._buckets: dict[Group, dict[int, _Bucket]] = defaultdict(lambda: defaultdict(_Bucket))
        self.judged = self.skipped = 0  # requests; those skipped were too many to be judged, and may be more

    def counts(self, reader: LocalReader, now_unix_nano: int) -> dict[Group, dict[float, Counts | None]]:
        """Return the judged requests of each window, with those stored since the last look.

        None where some of a window were skipped, or the verdict on too many is not known. A window begins up to a tenth
        of the shortest one early.
        """
        since = max(0, now_unix_nano - round(max(self._windows, default=0) * _NS))
        spans, self._cursor = reader.others_after(self._cursor, since, self._names, self._most + 1)
        spans.sort(key=lambda one: -one.start_unix_nano)
        if len(spans) > self._most:
            self._whole_from = max(one.start_unix_nano for one in spans[self._most :]) + 1
            self.skipped += len(spans) - self._most
        self.judged += len(spans[: self._most])
        for span in spans[: self._most]:
            self._add(span)
        self._forget(since)
        return {group: dict(self._of_windows(of, now_unix_nano)) for group, of in self._buckets.items()}

    def _add(self, span: SpanRow) -> None:
        request = stored(span, self._policy.keys, partial(segment, span))
        if request.recorded.words.keys() & self._names:  # which the entry span does not show
            return
        probability = probability_of(number(span.attributes, semconv.SLA_SAMPLING_PROBABILITY))
        weight = weight_of(probability, breached=span.attributes.get(semconv.SLA_BREACHED) is True)
        namespace = as_text(span.resource.get(NAMESPACE))
        for one in replay(self._policy, request):
            group = Group(namespace, span.service, one.objective.name)
            if one.word == EXCLUDED or (group not in self._buckets and len(self._buckets) >= MOST_REPLAYED_GROUPS):
                continue
            is_unknown = one.word == UNKNOWN or probability == 0
            good, breaches = 0 if is_unknown else weight, 0.0
            if one.word == BREACH:
                good, breaches = breaches, good
            found = _Bucket(good, breaches, weight * is_unknown)
            bucket = span.start_unix_nano // self._width
            self._buckets[group][bucket] += found

    def _forget(self, since: int) -> None:
        """Drop what began before all windows."""
        first = since // self._width
        for group, of in list(self._buckets.items()):
            for bucket in [one for one in of if one < first]:
                del of[bucket]
            if not of:
                del self._buckets[group]

    def _of_windows(self, of: dict[int, _Bucket], now: int) -> Iterator[tuple[float, Counts | None]]:
        found, newest_first = _Bucket(), sorted(of)
        for window in sorted(self._windows):
            start = now - round(window * _NS)
            while newest_first and newest_first[-1] >= start // self._width:
                found += of[newest_first.pop()]
            is_whole = start >= self._whole_from and found.unknown <= _MOST_UNKNOWN * sum(found)
            yield window, Counts(found.good, found.breaches) if is_whole else None


Row = dict[str, Any]
SEGMENT: Final = "segment"
MOST_GROUPS: Final = 10_000  # of the reduction: those with the most breaches
_MORE: Final = (
    1.1  # times as many: less is what counts at the edges of windows, which lie between two exports, differ by
)
_KEYS: Final = ("service", NAMESPACE, "objective")


class Found(NamedTuple):
    """The counts, how many groups of the reduction were left out, and whether others have judged requests."""

    counts: alerts.Counted
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
        counts = _sum_rows(within, names, weights)
        if exact is not None:
            counts |= exact.counts(Selection(start, now_unix_nano), counts)
        for group, of in counts.items():
            found[group][cuts[start]] = of
    places = {tuple(row[key] for key in keys) for row in rows}
    left = max((row["groups"] for row in rows), default=0) - len(places)
    return Found(dict(found), left, any(row["objective"] not in names for row in rows))


def add_counts(one: alerts.Counted, other: alerts.Counted) -> dict[Group, Mapping[float, Counts | None]]:
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


def _sum_rows(
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
        for (_, name, word), amount in one.counts.items():
            if one.service in self.namespaces and name in self.names:
                group = Group(self.namespaces[one.service], one.service, name)
                counts = Counts(amount * (word == GOOD), amount * (word == BREACH))
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
