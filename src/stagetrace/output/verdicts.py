"""The verdict on one entry span in words, as a command and the page show it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stagetrace import semconv
from stagetrace.output import missed_bounds
from stagetrace.output.units import milliseconds, threshold
from stagetrace.span_attributes import text
from stagetrace.store.base import Entry, SpanRow
from stagetrace.store.entries import entry_of

BREACH = "BREACH"


class Verdict(NamedTuple):
    """A verdict: its word, the sentence behind that, and what is known of a breach, each with its name."""

    word: str  # BREACH, GOOD, EXCLUDED or NOT JUDGED
    sentence: str
    reasons: tuple[tuple[str, str], ...]
    entry: Entry


def verdict_of(span: SpanRow, spans: Sequence[SpanRow]) -> Verdict:
    """Return the verdict on one entry span, out of the spans of its trace."""
    entry = entry_of(span, spans)
    who = f"{entry.service} {entry.name}: took {milliseconds(entry.duration_ms)}"
    allowed = "" if entry.threshold_ms is None else f", {threshold(entry.threshold_ms)} allowed"
    breached = span.attributes.get(semconv.SLA_BREACHED)
    if breached is None:
        is_excluded = text(span.attributes, semconv.SLA_VERDICT) == "excluded"
        return Verdict("EXCLUDED" if is_excluded else "NOT JUDGED", who, (), entry)
    if not breached:
        return Verdict("GOOD", f"{who}{allowed}", (), entry)
    over = "" if entry.overrun_ms is None else f", over by {milliseconds(entry.overrun_ms)}"
    decisive, whole = missed_bounds.part(entry), ""
    if decisive is not None:
        who, allowed = f"{entry.service} {entry.name}: {missed_bounds.sentence(decisive)}", ""
        whole = f"; the whole response took {milliseconds(entry.duration_ms)}"
    severity = f" ({entry.severity})" if entry.severity else ""
    return Verdict(BREACH, f"{who}{allowed}{over}{severity}{whole}", tuple(_reasons(entry)), entry)


def _reasons(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield what is known of a breach: other missed bounds, stage, evidence, objective."""
    if entry.missed[1:]:
        yield "also missed", "; ".join(map(missed_bounds.sentence, entry.missed[1:]))
    if entry.stage is not None:
        took = f", {milliseconds(entry.stages[entry.stage])}" if entry.stage in entry.stages else ""
        yield "stage", f"{entry.stage}{took}"
    if entry.cause:
        yield "cause", entry.cause
    if entry.evidence:
        yield "evidence", entry.evidence
    if entry.objective:
        yield "objective", entry.objective
