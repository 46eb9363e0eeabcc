"""Outcomes of the requests of a selection, out of spans; `answers.tally` has them by SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from stagetrace import semconv
from stagetrace.estimates import Sample
from stagetrace.span_attributes import number, text
from stagetrace.store import code_lines
from stagetrace.store.base import Entry, Lost, Selection, SpanRow, Tally
from stagetrace.store.entries import matches
from stagetrace.store.judged_by import word_of
from stagetrace.store.relations import probability_of, weight_of

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


def counted(span: SpanRow, objective: str | None = None) -> Counted:
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
                self.add(counted(span, self._selection.judged_by))

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
        return summed(rows, self._selection, self.newest, reason)


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


def summed(
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
        not selection.codes or code_lines.is_one_of(kind.code, selection.codes)
    )


def _sample(rows: Sequence[Row]) -> Sample:
    is_sampled = any(row.is_sampled for row in rows)
    is_known = any(row.most for row in rows) and not any(row.least == 0 for row in rows if row.kind.word != BREACH)
    return Sample(sum(row.stored for row in rows), is_sampled, is_sampled and not is_known)


def _sum(rows: Iterable[Row]) -> int:
    return round(sum(row.requests for row in rows))
