"""The spans of one trace as lines, depth first: what a picture of it draws, as text or on the page. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.critical_path import on_path
from stagetrace.span_attributes import number, text
from stagetrace.store.base import SERVER, SpanRow

_STAGE_ORDER: Final = {stage: place for place, stage in enumerate(semconv.STAGES)}


class Line(NamedTuple):
    """A span to draw; `entry` is the nearest entry span from here up, `note` why it does not stand below its parent."""

    span: SpanRow
    depth: int
    entry: SpanRow | None
    note: str | None
    is_critical: bool


def lines_of(spans: Sequence[SpanRow], places: Collection[int] | None = None) -> list[Line]:
    """Return spans depth first, siblings by time. Each span comes once, even where parents form a circle.

    `places`: what `on_path` gives of these spans, where that is known.
    """
    ids = {span.span_id for span in spans}
    critical = {id(spans[place]) for place in (on_path(spans) if places is None else places)}
    children: dict[str | None, list[SpanRow]] = {}
    for span in sorted(spans, key=by_time):
        parent = span.parent_span_id if span.parent_span_id in ids else None
        children.setdefault(parent, []).append(span)
    lines: list[Line] = []
    drawn: set[int] = set()
    # After the roots come spans that no root leads to, so that a broken trace still shows all it has.
    for top in (*children.get(None, ()), *sorted(spans, key=by_time)):
        pending: list[tuple[SpanRow, int, SpanRow | None]] = [(top, 0, None)]
        while pending:
            span, depth, above = pending.pop()
            if id(span) in drawn:
                continue
            drawn.add(id(span))
            entry = span if span.kind == SERVER else above
            note = _note(span, ids) if span is top else None
            lines.append(Line(span, depth, entry, note, span is not top and id(span) in critical))
            pending += [(child, depth + 1, entry) for child in reversed(children.get(span.span_id, ()))]
    return lines


def _note(top: SpanRow, ids: set[str]) -> str | None:
    """Return why a span with a parent stands at the top, or None for a root."""
    if top.parent_span_id is None:
        return None
    why = "is below this span: a circle" if top.parent_span_id in ids else "is not in this store"
    return f"(parent {top.parent_span_id} {why})"


def by_time(span: SpanRow) -> tuple[int, int, int, str]:
    """Return what puts spans in order."""
    # Stages of no duration begin and end together; only their order as stages puts them right.
    return span.start_unix_nano, span.end_unix_nano, _STAGE_ORDER.get(span.name, len(_STAGE_ORDER)), span.span_id


def visits(span: SpanRow) -> float:
    """Return how many visits a stage span stands for, if that is more than one; else 0."""
    found = number(span.attributes, semconv.ML_STAGE_COALESCED)
    return found if found is not None and found > 1 else 0


def calls(span: SpanRow) -> float:
    """Return how many calls a detail span stands for, if that is more than one; else 0."""
    found = number(span.attributes, semconv.DETAIL_CALLS)
    return found if found is not None and found > 1 else 0


def is_blamed(line: Line) -> bool:
    """Return whether this is a stage span of the stage that its entry span blames for a breach."""
    stage = text(line.span.attributes, semconv.ML_STAGE)
    return (
        stage is not None and line.entry is not None and text(line.entry.attributes, semconv.SLA_BREACH_STAGE) == stage
    )


def share(line: Line) -> float | None:
    """Return the part of the entry span's time that this span takes; None where there is none."""
    if line.entry is None or line.entry.duration_ns <= 0:
        return None
    return line.span.duration_ns / line.entry.duration_ns
