"""Requests that no objective of the policy has judged in their process: judged here, once each, as they are stored.

Services without a policy, or with another one, send them. They are counted by their start, in buckets of time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.replay import UNKNOWN, replay, stored
from stagetrace.columns import names_of
from stagetrace.rules.alert_seen import Group
from stagetrace.rules.burn import Counts
from stagetrace.sla.objective import BREACH, EXCLUDED
from stagetrace.span_attributes import as_text, number
from stagetrace.store.relations import probability_of, weight_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stagetrace.sla.policy import Policy
    from stagetrace.store.base import SpanRow
    from stagetrace.store.local.reader import LocalReader

NAMESPACE: Final = "service.namespace"
MOST: Final = 20_000  # requests that one look judges
MOST_GROUPS: Final = 1_000
_IN_SHORTEST: Final = 10  # buckets
_MOST_UNKNOWN: Final = 0.01  # of the requests, above which nothing is said of them
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
        request = stored(span, self._policy.keys, _Texts(span))
        if request.recorded.words.keys() & self._names:  # which the entry span does not show
            return
        probability = probability_of(number(span.attributes, semconv.SLA_SAMPLING_PROBABILITY))
        weight = weight_of(probability, breached=span.attributes.get(semconv.SLA_BREACHED) is True)
        namespace = as_text(span.resource.get(NAMESPACE))
        for one in replay(self._policy, request):
            group = Group(namespace, span.service, one.objective.name)
            if one.word == EXCLUDED or (group not in self._buckets and len(self._buckets) >= MOST_GROUPS):
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


class _Texts:
    """The text forms of attributes of a span, or else of its resource."""

    def __init__(self, span: SpanRow) -> None:
        self._places = (span.attributes, span.resource)

    def __call__(self, key: str) -> str | None:
        for place in self._places:
            for name in names_of(key):
                if name in place:
                    return as_text(place[name])
        return None
