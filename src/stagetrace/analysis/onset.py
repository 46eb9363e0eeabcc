"""When breaches became more frequent, or less, and what was released, or marked, at such a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.base import Source
from stagetrace.analysis.cases import Cases
from stagetrace.analysis.statistics import Cells, Counts, one_sided

# --- Moments at which something was released: a version of a service or of a model, or an instance that started; and
# those that somebody has marked.

SERVICE_VERSION: Final = "service.version"
MODEL_VERSION: Final = "model_version"
INSTANCE: Final = "service.instance.id"
MARK: Final = "mark"  # of all services
_KEYS: Final = (SERVICE_VERSION, MODEL_VERSION, MARK, INSTANCE)  # the one that a person knows best first
_BY: Final = ("service", "model", SERVICE_VERSION, MODEL_VERSION, INSTANCE)
_S: Final = 10**9
_LATE: Final = 10.0  # mean times between two requests after which a value was not there before
_MOST_RELEASES: Final = 50  # of a service
MOST_STORED: Final = 300_000  # requests of which all are read


class Release(NamedTuple):
    """The first request of a version or instance that was not there at the beginning; or a mark."""

    at_unix_nano: int
    service: str  # empty: of all
    key: str
    value: str
    model: str | None = None  # of a model's version

    @property
    def order(self) -> int:
        """Return the place of its key: versions before instances."""
        return _KEYS.index(self.key)

    def keys(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"key": self.key, "value": self.value, "model": self.model, "at_unix_nano": self.at_unix_nano}


@runtime_checkable
class Marked(Protocol):
    """What of a store that has them gives the moments that somebody has marked, each with its text."""

    @property
    def marks(self) -> Sequence[tuple[int, str]]:
        """Return them by time."""
        ...


def ask(source: Source, stored: int, cases: Cases | None = None) -> list[Release]:
    """Return the releases and marks within a source of so many requests, by time.

    Attributes are too dear to read of very many: of those a sample does, if there is one, to its first request.
    """
    marks = [Release(at, "", MARK, text) for at, text in (source.marks if isinstance(source, Marked) else ())]
    return sorted([*_released(source, stored, cases), *marks], key=_by_time)


def _released(source: Source, stored: int, cases: Cases | None) -> list[Release]:
    if stored <= MOST_STORED:
        return of_rows(source.reduce("versions", _BY))
    if cases is None:
        return []
    lacking: list[str | None] = [None] * len(cases.rows)
    versions, instances = (cases.attributes.get(key, lacking) for key in (SERVICE_VERSION, INSTANCE))
    return of_rows(
        [
            {
                **{key: row[key] for key in ("service", "model", MODEL_VERSION)},
                SERVICE_VERSION: version,
                INSTANCE: instance,
                "requests": 1.0,
                **dict.fromkeys(("first", "last"), row["start_unix_nano"]),
            }
            for row, version, instance in zip(cases.rows, versions, instances, strict=True)
        ]
    )


def of_rows(rows: Sequence[Mapping[str, Any]]) -> list[Release]:
    """Return the releases out of how many requests each version and instance had from when to when, by time."""
    found: list[Release] = []
    for service in dict.fromkeys(row["service"] for row in rows if row["service"]):
        own = [row for row in rows if row["service"] == service]
        of_service = [
            *_first_seen(own, SERVICE_VERSION, service),
            *(
                one
                for model in dict.fromkeys(row["model"] for row in own if row["model"])
                for one in _first_seen([row for row in own if row["model"] == model], MODEL_VERSION, service, model)
            ),
            *_first_seen(own, INSTANCE, service),
        ]
        found += sorted(of_service, key=lambda one: (one.order, one.at_unix_nano))[:_MOST_RELEASES]
    return sorted(found, key=_by_time)


def _by_time(one: Release) -> tuple[int, int, str]:
    return one.at_unix_nano, one.order, one.service


def _first_seen(
    rows: Iterable[Mapping[str, Any]], key: str, service: str, model: str | None = None
) -> Iterable[Release]:
    """Return the values of one key that came later than the others, by longer than chance would have them wait."""
    spans: dict[str, tuple[int, int, float]] = {}
    for row in rows:
        value = row[key]
        if value is not None:
            first, last, count = spans.get(value, (row["first"], row["last"], 0.0))
            spans[value] = (min(first, row["first"]), max(last, row["last"]), count + row["requests"])
    if len(spans) < 2:  # noqa: PLR2004 -- nothing was replaced
        return
    begins = min(first for first, _, _ in spans.values())
    for value, (first, last, count) in spans.items():
        if first - begins > max(_S, _LATE * (last - first) / max(count - 1, 1)):
            yield Release(first, service, key, value, model)


def near(releases: Iterable[Release], service: str, since_ns: int, until_ns: int) -> list[Release]:
    """Return the releases of a service, and marks, within [since, until], those that a person knows best first."""
    inside = [one for one in releases if one.service in (service, "") and since_ns <= one.at_unix_nano <= until_ns]
    return sorted(inside, key=lambda one: (one.order, one.at_unix_nano))


# --- When breaches became more frequent, or less: moments at which the breach rate of the same routes changed.
#
# Binary segmentation: at each of up to 200 moments the requests before are tested against those from then on, exactly
# and within strata; the clearest one divides them, and both sides are searched alike. The least p-value is multiplied
# by the number of moments and of sides tested (Bonferroni), so that nothing is found where nothing changed. What lasts
# no longer than a blip begins nothing. A release that the requests cannot tell from the clearest moment is the moment.

ALPHA: Final = 0.01
_MOMENTS: Final = 200
_LEAST: Final = 20  # requests on each side
_MOST: Final = 6  # changes
_BLIP_NS: Final = 30 * 10**9
_BLIP: Final = 0.05  # of the whole time, where that is short
_BLIPS: Final = 3  # times that blips are taken out
# Logarithms of a likelihood by which a moment may be worse than the clearest one, and still be the true one.
UNDECIDED: Final = 3.0
_NEW: Final = 5.0  # mean times between two requests within which the first one of a release comes


@dataclass(frozen=True)
class Change:
    """A moment from which on the breach rate is another one; rates are of weighted requests."""

    at_unix_nano: int  # the release, or the start of the first request after it
    before: float
    after: float
    p_value: float  # corrected for all moments that were tested
    release: Release | None = None


class Since(NamedTuple):
    """Since when something is so: a release, or an estimated moment."""

    at_unix_nano: int
    release: Release | None


def least_lasting(span_ns: int) -> int:
    """Return how long something lasts at least, in so much time, that is no blip."""
    return int(min(_BLIP_NS, _BLIP * span_ns))


def undecided(
    releases: Iterable[Release], service: str, times: Array, cut: int, worse_by: Callable[[int], float]
) -> Release | None:
    """Return the release of a service that could be the cut: the one that a person knows best, then the likeliest.

    `worse_by` gives the logarithm of a likelihood by which another cut of the sorted `times` is worse.
    """
    last = len(times) - 1
    found: list[tuple[int, float, Release]] = []
    for one in near(releases, service, int(times[0]), int(times[last])):
        place = int(np.searchsorted(times, one.at_unix_nano))
        loss = 0.0 if place == cut else worse_by(place) if 0 < place <= last else np.inf
        if loss <= UNDECIDED:
            found.append((one.order, loss, one))
    return min(found)[2] if found else None


def changes(
    starts: Sequence[int],
    breached: Sequence[bool],
    weights: Sequence[float] | None = None,
    strata: Sequence[object] | None = None,
    releases: Sequence[Release] = (),
) -> list[Change]:
    """Return the moments at which the breach rate changed, by time; `starts` in ns, in any order."""
    times = np.asarray(starts, np.int64)
    order = np.argsort(times, kind="stable")
    labels = np.asarray(breached, bool)
    if not labels.any() or labels.all():
        return []
    counts = Counts(labels, weights, strata)
    least = least_lasting(int(np.ptp(times)))
    cuts: dict[int, float] = {}
    for _ in range(_BLIPS):
        cuts = _cuts(counts, times, order)
        kept = _without_blips(times, order, sorted(cuts), least)
        if len(kept) == len(order):
            break
        order = kept
    ends = [0, *sorted(cuts), len(order)]
    rates = [_rate(counts, order[low:high]) for low, high in pairwise(ends)]
    made: list[Change] = []
    for place, cut in enumerate(sorted(cuts)):
        part = order[ends[place] : ends[place + 2]]
        release = _release(times[part], labels[part], cut - ends[place], releases)
        at = int(times[order[cut]]) if release is None else release.at_unix_nano
        one = Change(at, rates[place], rates[place + 1], cuts[cut], release)
        if release is not None and made and made[-1].release == release:  # one moment, which the requests divide in two
            one = replace(one, before=made[-1].before, p_value=min(one.p_value, made.pop().p_value))
        made.append(one)
    return made


def _cuts(counts: Counts, times: Array, order: Array) -> dict[int, float]:
    """Return the places in `order` at which the rate changes, and how surely."""
    cuts: dict[int, float] = {}
    pending = [(0, len(order))]
    while pending and len(cuts) < _MOST:
        first, last = pending.pop(0)
        found = _clearest(counts, times, order, first, last)
        if found is not None:
            cuts[found[0]] = found[1]
            pending += [(first, found[0]), (found[0], last)]
    return cuts


def _without_blips(times: Array, order: Array, cuts: Sequence[int], least: int) -> Array:
    """Return the requests outside pieces that last no longer than a blip."""
    keep = np.ones(len(order), bool)
    for low, high in pairwise([0, *cuts, len(order)] if cuts else []):
        ends = times[order[high]] if high < len(order) else times[order[-1]]
        if ends - times[order[low]] < least:
            keep[low:high] = False
    return order[keep]


def _release(times: Array, labels: Array, cut: int, releases: Sequence[Release]) -> Release | None:
    """Return the release, of any service, at which the rate of these requests may as well have changed."""
    sums = np.concatenate([[0], np.cumsum(labels)])
    best = _likelihood(sums, cut)
    services = dict.fromkeys(one.service for one in releases)
    found = [undecided(releases, one, times, cut, lambda at: best - _likelihood(sums, at)) for one in services]
    return min((one for one in found if one is not None), key=lambda one: one.order, default=None)


def _likelihood(sums: Array, cut: int) -> float:
    """Return the logarithm of the likelihood of two rates, before and after a cut."""
    size = len(sums) - 1
    whole = 0.0
    for bad, count in ((sums[cut], cut), (sums[size] - sums[cut], size - cut)):
        share = bad / count if count else 0.0
        whole += bad * np.log(share) + (count - bad) * np.log1p(-share) if 0 < share < 1 else 0.0
    return float(whole)


def since(
    starts: Sequence[int], breached: Sequence[bool], releases: Sequence[Release], begins_unix_nano: int
) -> Since | None:
    """Return since when some requests (all that a finding names) are breaches more often; None: all the time.

    `starts` are sorted, and `begins_unix_nano` is when requests of any kind began.
    """
    if not len(starts):
        return None
    up = [one for one in changes(starts, breached, None, None, releases) if one.after > one.before]
    if up:
        most = min(up, key=lambda one: one.p_value)
        return Since(most.at_unix_nano, most.release)
    # They may have begun with a release.
    gap = (starts[-1] - starts[0]) / max(len(starts) - 1, 1)
    if starts[0] - begins_unix_nano <= 2 * _NEW * gap:
        return None
    new = [one for one in releases if 0 <= starts[0] - one.at_unix_nano <= _NEW * gap]
    release = min(new, key=lambda one: (one.order, -one.at_unix_nano), default=None)
    return Since(starts[0] if release is None else release.at_unix_nano, release)


def since_of(
    requests: Array, rows: Sequence[Mapping[str, Any]], breached: Sequence[bool], releases: Sequence[Release]
) -> Since | None:
    """Return since when some requests, by their places, are breaches more often; None: all the time."""
    places = sorted(requests.tolist(), key=lambda place: rows[place]["start_unix_nano"])
    services = {"", *(row["service"] for row in rows)}
    own = [one for one in releases if one.service in services]
    starts, labels = [rows[place]["start_unix_nano"] for place in places], [bool(breached[place]) for place in places]
    return since(starts, labels, own, min(row["start_unix_nano"] for row in rows))


def _clearest(counts: Counts, times: Array, order: Array, first: int, last: int) -> tuple[int, float] | None:
    """Return where, among the requests at [first, last) by time, the rate changes most surely, and how surely."""
    inside = order[first:last]
    places = np.unique(np.linspace(_LEAST, len(inside) - _LEAST, _MOMENTS).astype(int))
    # Requests that start together are on one side.
    places = np.unique(np.searchsorted(times[inside], times[inside[np.clip(places, 0, len(inside) - 1)]]))
    places = places[(places >= _LEAST) & (places <= len(inside) - _LEAST)]
    if not len(places):
        return None
    codes = np.full(len(times), len(places) + 1)
    codes[inside] = np.searchsorted(places, np.arange(len(inside)), side="right")
    table = counts.table(codes, len(places) + 2)
    before = Cells(table.bad[:, :-1].cumsum(1)[:, :-1], table.good[:, :-1].cumsum(1)[:, :-1])
    whole = Cells(table.bad[:, :-1].sum(1, keepdims=True), table.good[:, :-1].sum(1, keepdims=True))
    p_values = np.minimum(one_sided(before, whole - before), one_sided(whole - before, before))
    # Of many requests, the least numbers there are make several moments equally sure.
    sums = np.concatenate([[0], np.cumsum(counts.breached[inside])])
    surest = np.flatnonzero(p_values <= p_values.min()).tolist()
    best = max(surest, key=lambda place: _likelihood(sums, int(places[place])))
    p_value = min(1.0, float(p_values[best]) * 2 * len(places))
    return (first + int(places[best]), p_value) if p_value <= ALPHA / _MOST else None


def _rate(counts: Counts, rows: Array) -> float:
    codes = np.ones(len(counts.breached), int)
    codes[rows] = 0
    sums = counts.weighted(counts.table(codes, 2))
    bad, good = float(sums.bad[:, 0].sum()), float(sums.good[:, 0].sum())
    return bad / (bad + good)
