"""Single requests, counts and outcomes of a selection: out of spans, and by queries of the two relations in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.estimates import Sample
from stagetrace.semconv import SLA_BREACH_MISSED, number, text
from stagetrace.store import entries
from stagetrace.store.base import Entry, Lost, Relations, Selection, SpanRow, Tally
from stagetrace.store.entries import matches, missed, word_of
from stagetrace.store.reductions import (
    DECODED,
    LOADED,
    OTHER_STAGES,
    REQUESTS,
    STAGE,
    STAGE_COLUMNS,
    START_TIME,
    probability_of,
    weight_of,
)

# --- Outcomes of the requests of a selection, out of spans; `answers.tally` has them by SQL.

BREACH: Final = "breach"
GOOD: Final = "good"
EXCLUDED: Final = "excluded"


class Kind(NamedTuple):
    """The kind of a request, for counting; `word` is None where it is neither judged nor excluded."""

    word: str | None
    is_recorded: bool
    stage: str | None = None
    cause: str | None = None
    code: str | None = None


class Row(NamedTuple):
    """The requests of one kind: how many by weight, by how much they were over in all, when the newest began.

    Also how many are stored, and their sampling probabilities.
    """

    kind: Kind
    requests: float
    overrun_ms: float
    newest: int
    stored: int
    is_sampled: bool
    least: float | None  # lowest sampling probability of these; 0: not known
    most: float | None
    service: str = ""


class Counted(NamedTuple):
    """One request; of several copies of its span the one with the greatest `rank` counts."""

    key: tuple[str, str, str]  # trace, span, service
    rank: int
    start: int
    kind: Kind
    overrun_ms: float
    weight: float = 1.0  # how many requests it stands for
    probability: float | None = None  # as `relations.probability_of`
    is_upgraded: bool = False


_FIRST: Final = 2**31  # more attributes than any span has
_EVER_NS: Final = 2**63 - 1


def of_objective(
    kind: Kind, overrun_ms: float, objective: str | None, shown: str | None, verdicts: str | None
) -> tuple[Kind, float]:
    """Return what a request is by the verdict of one objective, if one is given: not always that of its entry span.

    By how much it was over, the entry span says of the objective that it shows alone.
    """
    if objective is None or shown == objective:
        return kind, overrun_ms
    word = word_of(objective, shown, kind.word, verdicts)
    return (kind, 0.0) if word == kind.word else (Kind(word, kind.is_recorded), 0.0)


def count_request(span: SpanRow, objective: str | None = None) -> Counted:
    """Return the counted values of an entry span; by the verdict of one objective, where it is given."""
    read = span.attributes
    breached, verdict = read.get(semconv.SLA_BREACHED), text(read, semconv.SLA_VERDICT)
    recorded = isinstance(breached, bool) or verdict is not None or any(map(semconv.stage_of_total, read))
    kind = Kind(GOOD if breached is False else EXCLUDED if verdict == EXCLUDED else None, recorded)
    overrun_ms = 0.0
    if breached is True:
        kind = Kind(
            BREACH,
            is_recorded=True,
            stage=text(read, semconv.SLA_BREACH_STAGE),
            cause=text(read, semconv.SLA_BREACH_CAUSE),
            code=text(read, semconv.SLA_BREACH_CODE),
        )
        overrun_ms = number(read, semconv.SLA_OVERRUN_MS) or 0.0
    key = span.trace_id, span.span_id, span.service
    probability = probability_of(number(read, semconv.SLA_SAMPLING_PROBABILITY))
    is_upgraded = read.get(semconv.SLA_UPGRADED) is True
    weight = weight_of(probability, breached=breached is True)
    shown, verdicts = text(read, semconv.SLA_OBJECTIVE), text(read, semconv.SLA_VERDICTS)
    kind, overrun_ms = of_objective(kind, overrun_ms, objective, shown, verdicts)
    return Counted(key, len(read), span.start_unix_nano, kind, overrun_ms, weight, probability, is_upgraded)


def counted_breach(entry: Entry, objective: str | None = None) -> Counted:
    """Return the counted values of a breach; of one that missed an objective, where it is given."""
    key = entry.trace_id, entry.span_id, entry.service
    kind = Kind(BREACH, is_recorded=True, stage=entry.stage, cause=entry.cause, code=entry.code)
    is_its_own = objective in (None, entry.objective)
    return Counted(key, _FIRST, entry.start_unix_nano, kind, (entry.overrun_ms or 0.0) if is_its_own else 0.0)


class Tallier:
    """Counts the requests of a selection out of spans, of which some come twice; keeps little of each."""

    def __init__(self, selection: Selection) -> None:
        """Count the requests of `selection`, its limit aside, breaches or not."""
        self._selection = selection
        self._ever = requests_of(selection, ever=True)
        self._found: dict[tuple[str, str, str], Counted] = {}
        self.newest: int | None = None  # of any time

    def offer(self, span: SpanRow) -> None:
        """Count an entry span if it is selected."""
        if matches(span, self._ever):
            self.newest = max(self.newest or 0, span.start_unix_nano)
            if self._selection.since_ns <= span.start_unix_nano < self._selection.until_ns:
                self.add(count_request(span, self._selection.judged_by))

    def add(self, one: Counted) -> None:
        """Count a request that is selected."""
        known = self._found.get(one.key)
        if known is None or one.rank > known.rank:
            self._found[one.key] = one

    def tally(self, reason: str | None = None) -> Tally:
        """Return the sums; `reason` as in Tally."""
        sums: dict[tuple[str, Kind], list[Counted]] = defaultdict(list)
        for one in self._found.values():
            sums[one.key[-1], one.kind].append(one)
        rows = (_row(service, kind, all_) for (service, kind), all_ in sums.items())
        return tally_of(rows, self._selection, self.newest, reason)


def _row(service: str, kind: Kind, all_: Sequence[Counted]) -> Row:
    known = [one.probability for one in all_ if one.probability is not None]
    return Row(
        kind,
        sum(one.weight for one in all_),
        sum(one.overrun_ms for one in all_),
        max(one.start for one in all_),
        len(all_),
        bool(known) or any(one.is_upgraded for one in all_),
        min(known, default=None),
        max(known, default=None),
        service,
    )


def requests_of(selection: Selection, *, ever: bool = False) -> Selection:
    """Return the selection of all requests among which `selection` selects breaches; `ever`: of any time."""
    wanted = replace(selection, breached=None, causes=(), codes=(), limit=None)
    return replace(wanted, since_ns=0, until_ns=_EVER_NS) if ever else wanted


def named_in(selection: Selection) -> Selection:
    """Return the selection of all requests, of any time, that have the names of `selection`; causes are words."""
    return replace(requests_of(selection, ever=True), codes=selection.codes)


def tally_of(
    rows: Iterable[Row], selection: Selection, newest_of_any_time: int | None = None, reason: str | None = None
) -> Tally:
    """Return the sums of rows; of the breaches only those with a cause and a code of `selection` are missed."""
    found = list(rows)
    judged = [row for row in found if row.kind.word in (BREACH, GOOD)]
    missed = [row for row in judged if row.kind.word == BREACH and _is_selected(row.kind, selection)]
    by_kind: dict[tuple[str | None, str | None], list[Row]] = defaultdict(list)
    for row in missed:
        by_kind[row.kind.stage, row.kind.cause].append(row)
    # To the nanosecond: further digits of a sum depend on the order of its parts.
    lost = [
        Lost(*kind, sum(row.stored for row in all_), round(sum(row.overrun_ms for row in all_), 6))
        for kind, all_ in by_kind.items()
    ]
    return Tally(
        requests=_sum(found),
        judged=_sum(judged),
        missed=_sum(missed),
        excluded=_sum(row for row in found if row.kind.word == EXCLUDED),
        recorded=_sum(row for row in found if row.kind.is_recorded),
        lost=tuple(sorted(lost, key=lambda one: (-one.overrun_ms, -one.missed, one.stage or "", one.cause or ""))),
        newest_unix_nano=max((row.newest for row in found), default=newest_of_any_time),
        reason=reason,
        sample=_sample(found),
        services=tuple(sorted({row.service for row in found})),
    )


def _is_selected(kind: Kind, selection: Selection) -> bool:
    return (not selection.causes or kind.cause in selection.causes) and (
        not selection.codes or entries.is_one_of(kind.code, selection.codes)
    )


def _sample(rows: Sequence[Row]) -> Sample:
    is_sampled = any(row.is_sampled for row in rows)
    is_known = any(row.most for row in rows) and not any(row.least == 0 for row in rows if row.kind.word != BREACH)
    return Sample(sum(row.stored for row in rows), is_sampled, is_sampled and not is_known)


def _sum(rows: Iterable[Row]) -> int:
    return round(sum(row.requests for row in rows))


# --- Queries of the two relations in SQL: single requests, counts, outcomes.

# The columns of a request as every command shows it.
COLUMNS: Final = tuple(column for column in REQUESTS if column not in DECODED)

# Sort key -> the column, greatest first; the name of any other stage is a sort key, too.
SORTS: Final[Mapping[str, str]] = {
    "start": "start_unix_nano",
    "duration": "duration_ms",
    "overrun": "overrun_ms",
    **STAGE_COLUMNS,
    "other": OTHER_STAGES,
}
_ALL: Final = 2**63 - 1
_AT_ONCE: Final = 5000  # requests that one question decodes
_KEY: Final = ("trace_id", "span_id", "service")


def tally(relations: Relations, selection: Selection) -> Tally:
    """Return the outcomes of all requests; only the breaches with a cause and a code of `selection` are missed."""
    by = ["service"]
    by += ["code"] if selection.codes else []  # only then: of older files it is decoded row by row
    by += ["objective", "verdicts"] if selection.judged_by is not None else []
    return tally_of((_tally_row(row, len(by), selection.judged_by) for row in relations.reduce("tally", by)), selection)


def _tally_row(row: Mapping[str, Any], first: int, objective: str | None) -> Row:
    """Return a row of the reduction, before the columns of which there are `first` that it is grouped by."""
    values = list(row.values())[first:]
    kind = Kind(*values[:4])._replace(code=row.get("code"))
    kind, over_ms = of_objective(kind, values[5], objective, row.get("objective"), row.get("verdicts"))
    return Row(kind, values[4], over_ms, *values[6:])._replace(service=row["service"])


def newest(relations: Relations) -> int | None:
    """Return when the newest request began."""
    (row,) = relations.reduce("newest")
    found: int | None = row["newest"]
    return found


class Place(NamedTuple):
    """Where a request stands in an order: its value of what is sorted by, then what decides between equal ones."""

    value: float | None
    start_unix_nano: int
    trace_id: str
    span_id: str


def requests(
    relations: Relations,
    sort: str = "start",
    top: int | None = None,
    *,
    breached: bool = False,
    after: Place | None = None,
    attributes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return rows of `requests` as `COLUMNS` -> value, greatest first, those without a value last.

    `sort`: one of `SORTS`, or the name of a stage; `breached`: only breaches; `after`: only those behind this place;
    `attributes`: the text form of these too, by their names.
    """
    by = SORTS.get(sort, f"{STAGE}{sort}")
    place = Place(None, 0, "", "") if after is None else after
    # Their ids first, so that only these requests are decoded.
    most = _ALL if top is None else top
    found = relations.reduce(
        "places", [by], breached=breached, is_behind=after is not None, most=most, **place._asdict()
    )
    return [_shown(row, attributes) for row in _whole(relations, found, attributes)]


def request(relations: Relations, entry: Entry) -> dict[str, Any] | None:
    """Return the row of one request, as `requests` does; None where it is not selected."""
    return next((_shown(row, ()) for row in _whole(relations, [vars(entry)])), None)


def _whole(
    relations: Relations, places: Sequence[Mapping[str, Any]], attributes: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the requests at these places, in their order, a part of them at a time.

    One may be gone meanwhile: a store that is written to is asked twice.
    """
    for at in range(0, len(places), _AT_ONCE):
        part = places[at : at + _AT_ONCE]
        starts = [one["start_unix_nano"] for one in part]
        ids = [one["span_id"] for one in part]
        found = relations.reduce("whole", attributes, ids=ids, first=min(starts), last=max(starts))
        each = {_key(row): row for row in found}
        yield from (each[_key(one)] for one in part if _key(one) in each)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def breaches(relations: Relations, most: int | None) -> list[Entry]:
    """Return the records of the breaches that are selected, at most the newest so many."""
    found = relations.reduce("late", most=_ALL if most is None else most)
    stages = {
        _key(row): {stage: row[of] for stage, of in STAGE_COLUMNS.items() if row[of] is not None} for row in found
    }
    # The others are made of bytes, by PyArrow, which takes long to import.
    others = [row for row in found if row[OTHER_STAGES] is not None]
    stages |= {_key(row): row["stages"] for row in _whole(relations, others)}
    names = [one.name for one in fields(Entry) if one.name not in ("stages", "missed")]
    return [
        Entry(**{name: row[name] for name in names}, missed=missed(row["missed"]), stages=stages[_key(row)])
        for row in found
    ]


def entry(row: Mapping[str, Any]) -> Entry:
    """Return the record of a row of `requests`, which has the attribute SLA_BREACH_MISSED too."""
    same = {one.name: row[one.name] for one in fields(Entry) if one.name in row and one.name != "missed"}
    return Entry(**same, missed=missed(row[SLA_BREACH_MISSED]))


def stage_names(relations: Relations) -> list[str]:
    """Return the names of all stages that the requests have, sorted."""
    return [row["stage"] for row in relations.reduce("stage_names")]


def request_of(span: SpanRow) -> dict[str, Any]:
    """Return one entry span as `requests` does, without a database."""
    from stagetrace.store.load import cells

    found = dict(zip(LOADED, cells(span), strict=True))
    found["stage"] = found["breach_stage"]
    found["sampling_probability"] = probability_of(found["sampling_probability"])
    found["weight"] = weight_of(found["sampling_probability"], breached=found["breached"])
    found["stages"] = dict(found["stages"])
    return _shown(found)


def _shown(row: Mapping[str, Any], attributes: Sequence[str] = ()) -> dict[str, Any]:
    """Return a row as COLUMNS, with its start as text (RFC 3339), and these attributes."""
    start = datetime.fromtimestamp(0, timezone.utc) + timedelta(microseconds=row["start_unix_nano"] // 1000)
    found = {**row, START_TIME: f"{start:%Y-%m-%dT%H:%M:%S.%f}Z"}
    return {name: found[name] for name in (*COLUMNS, *attributes)}


def slowest_stage(request: Mapping[str, Any]) -> str | None:
    """Return the stage that the verdict names, else the one with the greatest total."""
    if request["stage"] is not None:
        return str(request["stage"])
    totals = request["stages"]
    return max(totals, key=lambda stage: totals[stage], default=None)


def count(relations: Relations, most: int = _ALL) -> int:
    """Return how many requests there are, or `most` if there are more."""
    (row,) = relations.reduce("size", most=most)
    return int(row["stored"])


def newest_first(spans: Iterable[SpanRow]) -> Sequence[SpanRow]:
    """Return entry spans by start, the newest first."""
    return sorted(spans, key=lambda span: (-span.start_unix_nano, span.trace_id, span.span_id))
