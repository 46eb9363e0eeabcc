"""One trace as lines of text: verdicts first, then the tree of spans with a bar each. Pure: rows in, lines out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.critical_path import on_path
from stagetrace.output import missed_bounds
from stagetrace.output.times import UTC, Zone, shown
from stagetrace.output.units import milliseconds, threshold
from stagetrace.printable import printable
from stagetrace.span_attributes import number, text
from stagetrace.store.base import SERVER, Entry, SpanRow, Trace
from stagetrace.store.entries import entry_of

_STAGE_ORDER: Final = {stage: place for place, stage in enumerate(semconv.STAGES)}
_UNIT: Final = re.compile(r"(\d) (ms|s|%)\b")
_SHORTEST_BAR: Final = 10
_TAIL: Final = 24  # duration, share and whether it is on the critical path
_MARK: Final = " < culprit"
_CRITICAL: Final = " *"


class Look(NamedTuple):
    """How bars are drawn: of an entry span, a stage, any other span; `sliver` for a span too short for a cell."""

    entry: str
    stage: str
    other: str
    sliver: str
    cut: str


BLOCKS: Final = Look("─", "█", "▒", "▏", "…")
ASCII: Final = Look("-", "#", "=", "|", "~")


class _Line(NamedTuple):
    """A span to draw; `entry` is the nearest entry span from here up, `note` why it does not stand below its parent."""

    span: SpanRow
    depth: int
    entry: SpanRow | None
    note: str | None
    is_critical: bool


def render(trace: Trace, width: int, look: Look, zone: Zone = UTC, *, wrapped: bool = False) -> list[str]:
    """Return the lines, none longer than `width` (60 or more), sentences only if `wrapped`; times are of `zone`."""
    spans = trace.spans
    start, end = min(span.start_unix_nano for span in spans), max(span.end_unix_nano for span in spans)
    services = len({span.service for span in spans})
    counts = f"{_many(len(spans), 'span')} of {_many(services, 'service')}"
    head = f"trace {trace.trace_id}, {shown(start, zone, 6)} {zone.name}, {counts}, {milliseconds((end - start) / 1e6)}"
    entries = sorted((span for span in spans if span.kind == SERVER), key=_by_time)
    verdicts = [line for entry in entries for line in _verdict(entry, spans)]
    tree = _tree(spans)
    legend = ["* on the critical path: the end waited for it"] if any(line.is_critical for line in tree) else []
    if any(_visits(span) for span in spans):
        legend.append("xN: the sum of N visits, which took turns with those of the lines beside it")
    if any(_calls(span) for span in spans):
        legend.append("xN of a library: N calls of this stage, from the first begin to the last end")
    legend[:0] = [""] if legend else []
    texts = [head, *map(printable, verdicts)]
    if wrapped:
        texts = [line for text in texts for line in _wrapped(text, width)]
    return [*texts, "", *_bars(tree, (start, end), width, look), *legend]


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines, those after the first indented; a number stays with its unit, and a long word whole."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    kept = _UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", text)
    lines = wrap(kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _verdict(span: SpanRow, spans: Sequence[SpanRow]) -> list[str]:
    """Return the threshold and the duration of one entry span."""
    entry = entry_of(span, spans)
    who = f"{entry.service} {entry.name}: took {milliseconds(entry.duration_ms)}"
    allowed = "" if entry.threshold_ms is None else f", {threshold(entry.threshold_ms)} allowed"
    breached = span.attributes.get(semconv.SLA_BREACHED)
    if breached is None:
        return [f"{'EXCLUDED' if text(span.attributes, semconv.SLA_VERDICT) == 'excluded' else 'NOT JUDGED'} {who}"]
    if not breached:
        return [f"GOOD {who}{allowed}"]
    over = "" if entry.overrun_ms is None else f", over by {milliseconds(entry.overrun_ms)}"
    decisive, whole = missed_bounds.part(entry), ""
    if decisive is not None:
        who, allowed = f"{entry.service} {entry.name}: {missed_bounds.sentence(decisive)}", ""
        whole = f"; the whole response took {milliseconds(entry.duration_ms)}"
    severity = f" ({entry.severity})" if entry.severity else ""
    return [f"BREACH {who}{allowed}{over}{severity}{whole}", *_reasons(entry)]


def _reasons(entry: Entry) -> Iterator[str]:
    """Yield the lines beneath a breach: other missed bounds, stage, evidence, objective."""
    if entry.missed[1:]:
        yield f"  also missed: {'; '.join(map(missed_bounds.sentence, entry.missed[1:]))}"
    if entry.stage is not None:
        took = f", {milliseconds(entry.stages[entry.stage])}" if entry.stage in entry.stages else ""
        yield f"  stage: {entry.stage}{took}"
    if entry.cause:
        yield f"  cause: {entry.cause}"
    if entry.evidence:
        yield f"  evidence: {entry.evidence}"
    if entry.objective:
        yield f"  objective: {entry.objective}"


def _tree(spans: Sequence[SpanRow]) -> list[_Line]:
    """Return spans depth first, siblings by time. Each span comes once, even where parents form a circle."""
    ids = {span.span_id for span in spans}
    critical = {id(spans[place]) for place in on_path(spans)}
    children: dict[str | None, list[SpanRow]] = {}
    for span in sorted(spans, key=_by_time):
        parent = span.parent_span_id if span.parent_span_id in ids else None
        children.setdefault(parent, []).append(span)
    lines: list[_Line] = []
    drawn: set[int] = set()
    # After the roots come spans that no root leads to, so that a broken trace still shows all it has.
    for top in (*children.get(None, ()), *sorted(spans, key=_by_time)):
        pending: list[tuple[SpanRow, int, SpanRow | None]] = [(top, 0, None)]
        while pending:
            span, depth, above = pending.pop()
            if id(span) in drawn:
                continue
            drawn.add(id(span))
            entry = span if span.kind == SERVER else above
            note = _note(span, ids) if span is top else None
            lines.append(_Line(span, depth, entry, note, span is not top and id(span) in critical))
            pending += [(child, depth + 1, entry) for child in reversed(children.get(span.span_id, ()))]
    return lines


def _note(top: SpanRow, ids: set[str]) -> str | None:
    """Return why a span with a parent stands at the top, or None for a root."""
    if top.parent_span_id is None:
        return None
    why = "is below this span: a circle" if top.parent_span_id in ids else "is not in this store"
    return f"(parent {top.parent_span_id} {why})"


def _by_time(span: SpanRow) -> tuple[int, int, int, str]:
    # Stages of no duration begin and end together; only their order as stages puts them right.
    return span.start_unix_nano, span.end_unix_nano, _STAGE_ORDER.get(span.name, len(_STAGE_ORDER)), span.span_id


def _bars(lines: Sequence[_Line], bounds: tuple[int, int], width: int, look: Look) -> Iterator[str]:
    labels = [_label(line) for line in lines]
    marked = [_is_blamed(line) for line in lines]
    tail = _TAIL + (len(_MARK) if any(marked) else 0)
    label_width = min(max(map(len, labels)), width * 2 // 5, width - tail - _SHORTEST_BAR)
    bar_width = width - label_width - tail
    for line, label, mark in zip(lines, labels, marked, strict=True):
        if line.note is not None:
            yield line.note
        shown = label if len(label) <= label_width else label[: label_width - 1] + look.cut
        bar = _bar(line.span, bounds, bar_width, look)
        took = milliseconds(line.span.duration_ns / 1e6)
        marks = f"{_CRITICAL if line.is_critical else '  '}{_MARK if mark else ''}"
        yield f"{shown:<{label_width}} {bar:<{bar_width}} {took:>12} {_share(line):>7}{marks}".rstrip()


def _label(line: _Line) -> str:
    """Return the indented name, with the service where another one begins."""
    span = line.span
    service = f"{span.service} " if span.kind == SERVER or line.depth == 0 else ""
    visits = _visits(span) or _calls(span)
    times = f" x{visits:g}" if visits else ""
    error = " ERROR" if span.status == "ERROR" else ""
    return "  " * line.depth + printable(f"{service}{span.name}{times}{error}")


def _visits(span: SpanRow) -> float:
    """Return how many visits a stage span stands for, if that is more than one; else 0."""
    visits = number(span.attributes, semconv.ML_STAGE_COALESCED)
    return visits if visits is not None and visits > 1 else 0


def _calls(span: SpanRow) -> float:
    """Return how many calls a detail span stands for, if that is more than one; else 0."""
    calls = number(span.attributes, semconv.DETAIL_CALLS)
    return calls if calls is not None and calls > 1 else 0


def _is_blamed(line: _Line) -> bool:
    stage = text(line.span.attributes, semconv.ML_STAGE)
    return (
        stage is not None and line.entry is not None and text(line.entry.attributes, semconv.SLA_BREACH_STAGE) == stage
    )


def _bar(span: SpanRow, bounds: tuple[int, int], cells: int, look: Look) -> str:
    """Return the bar with its indent. Ends are rounded alike, so spans that touch in time touch on screen."""
    start, whole = bounds[0], max(1, bounds[1] - bounds[0])
    left, right = (
        (2 * (at - start) * cells + whole) // (2 * whole) for at in (span.start_unix_nano, span.end_unix_nano)
    )
    if right <= left:
        return " " * min(left, cells - 1) + look.sliver
    mark = look.entry if span.kind == SERVER else look.stage if semconv.ML_STAGE in span.attributes else look.other
    return " " * left + mark * (right - left)


def _share(line: _Line) -> str:
    """Return the part of the entry span's time that this span takes."""
    if line.entry is None or line.entry.duration_ns <= 0:
        return ""
    return f"{100 * line.span.duration_ns / line.entry.duration_ns:.1f} %"
