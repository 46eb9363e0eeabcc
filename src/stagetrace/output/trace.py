"""One trace as lines of text and as JSON: verdicts, the tree of spans with bars, stacks, the critical path. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.span_tree import on_path
from stagetrace.output.answer import completeness, keys_of
from stagetrace.output.breaches import verdict_of
from stagetrace.output.units import UTC, Zone, milliseconds, shown
from stagetrace.semconv import json_value, number, text
from stagetrace.store.base import SERVER, SpanEvent, SpanRow, Trace, Value
from stagetrace.text import printable

if TYPE_CHECKING:
    from stagetrace.analysis.span_tree import Path, Tree

# --- One trace as lines of text: verdicts first, then the tree of spans with a bar each. Pure: rows in, lines out.

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


def render(trace: Trace, width: int, look: Look, zone: Zone = UTC, *, wrapped: bool = False) -> list[str]:
    """Return the lines, none longer than `width` (60 or more), sentences only if `wrapped`; times are of `zone`."""
    spans = trace.spans
    start, end = min(span.start_unix_nano for span in spans), max(span.end_unix_nano for span in spans)
    services = len({span.service for span in spans})
    counts = f"{_many(len(spans), 'span')} of {_many(services, 'service')}"
    head = f"trace {trace.trace_id}, {shown(start, zone, 6)} {zone.name}, {counts}, {milliseconds((end - start) / 1e6)}"
    entries = sorted((span for span in spans if span.kind == SERVER), key=by_time)
    verdicts = [line for entry in entries for line in _verdict(entry, spans)]
    tree = lines_of(spans)
    legend = ["* on the critical path: the end waited for it"] if any(line.is_critical for line in tree) else []
    if any(visits(span) for span in spans):
        legend.append("xN: the sum of N visits, which took turns with those of the lines beside it")
    if any(calls(span) for span in spans):
        legend.append("xN of a library: N calls of this stage, from the first begin to the last end")
    legend[:0] = [""] if legend else []
    texts = [head, *map(printable, verdicts)]
    if wrapped:
        texts = [line for text in texts for line in _wrap_text(text, width)]
    return [*texts, "", *_bars(tree, (start, end), width, look), *legend]


def _wrap_text(text: str, width: int) -> list[str]:
    """Return a text in lines, those after the first indented; a number stays with its unit, and a long word whole."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    kept = _UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", text)
    lines = wrap(kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _verdict(span: SpanRow, spans: Sequence[SpanRow]) -> list[str]:
    """Return the threshold and the duration of one entry span, beneath them why it was missed and where it stood."""
    found = verdict_of(span, spans)
    reasons = (f"  {name}: {value}" for name, value in found.reasons)
    return [f"{found.word} {found.sentence}", *reasons, *stall_lines(span)]


def _bars(lines: Sequence[Line], bounds: tuple[int, int], width: int, look: Look) -> Iterator[str]:
    labels = [_label(line) for line in lines]
    marked = [is_blamed(line) for line in lines]
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
        part = share(line)
        of_entry = "" if part is None else f"{100 * part:.1f} %"
        yield f"{shown:<{label_width}} {bar:<{bar_width}} {took:>12} {of_entry:>7}{marks}".rstrip()


def _label(line: Line) -> str:
    """Return the indented name, with the service where another one begins."""
    span = line.span
    service = f"{span.service} " if span.kind == SERVER or line.depth == 0 else ""
    count = visits(span) or calls(span)
    times = f" x{count:g}" if count else ""
    error = " ERROR" if span.status == "ERROR" else ""
    return "  " * line.depth + printable(f"{service}{span.name}{times}{error}")


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


# --- The spans of one trace as lines, depth first: what a picture of it draws, as text or on the page. Pure.

_STAGE_ORDER: Final = {stage: place for place, stage in enumerate(semconv.STAGES)}


class Line(NamedTuple):
    """A span to draw; `entry` is the nearest entry span from here up, `note` why it does not stand below its parent."""

    span: SpanRow
    depth: int
    entry: SpanRow | None
    note: str | None
    is_critical: bool


# --- The stacks that were sampled while a request was late (events `stall`): read back, and as lines of text. Pure.


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


_SHOWN: Final = 4  # stacks; --json has all
_INNERMOST: Final = 4  # places of a stack
REQUEST: Final = "request"
# Whose stacks there are, in words, in the order in which they are read.
_WHOSE: Final = {
    REQUEST: "the request",
    "blocker": "what it waited for",
    "rival": "a thread that computed meanwhile",
    "pool": "a thread of the pool",
    "resumed": "a block of resume in another process",
}
_ORDER: Final = {of: place for place, of in enumerate(_WHOSE)}
_PLACE: Final = re.compile(r'\s*File "(.+)", line (\d+), in (.+)')


class Stall(NamedTuple):
    """One distinct stack; what its event lacks is None."""

    at_unix_nano: int  # of its first sample
    of: str
    line: str  # of the application, `app.py:41 in predict`
    samples: float | None
    out_of: float | None
    gil_ms: float | None  # for how long the sampler could not run before
    stack: str  # as of a traceback, the innermost place last

    @property
    def whose(self) -> str:
        """Return whose stack it is, in words; a word of a later version as it is."""
        return _WHOSE.get(self.of, self.of)

    @property
    def seen(self) -> str:
        """Return how often it was seen."""
        known = self.samples is not None and self.out_of is not None
        return f"{self.samples:g} of {self.out_of:g} samples" if known else ""

    @property
    def gil(self) -> str:
        """Return what kept the sampler from a sample before."""
        return "" if self.gil_ms is None else f"before it, the GIL was held for {milliseconds(self.gil_ms)}"

    def after(self, span: SpanRow) -> str:
        """Return when it was first seen, after the start of its span."""
        return milliseconds((self.at_unix_nano - span.start_unix_nano) / 1e6)


def stalls_of(span: SpanRow) -> list[Stall]:
    """Return the stacks of an entry span: those of the request first, and of each kind the most frequent."""
    found = [_stall(event) for event in span.events if event.name == semconv.STALL]
    return sorted(found, key=lambda one: (_ORDER.get(one.of, len(_ORDER)), one.of, -(one.samples or 0)))


def stall_lines(span: SpanRow) -> Iterator[str]:
    """Yield each stack of an entry span: whose it is, the application's line, how often it was seen, innermost places.

    The places are in the order of a traceback, the innermost last.
    """
    stalls = stalls_of(span)
    for one in stalls[:_SHOWN]:
        yield f"  stall: {stall_sentence(one, span)}{one.gil and f'; {one.gil}'}"
        places = _places(one.stack)
        if len(places) > _INNERMOST:
            yield "      ..."
        yield from (f"      {place}" for place in places[-_INNERMOST:])
    if more := len(stalls[_SHOWN:]):
        yield f"  stall: {more} more stack{'' if more == 1 else 's'}; --json has all"


def stall_sentence(one: Stall, span: SpanRow) -> str:
    """Return whose stack it is, where, how often it was seen and when first."""
    return f"{one.whose} at {one.line}{one.seen and f', {one.seen}'}, first {one.after(span)} after the start"


def _stall(event: SpanEvent) -> Stall:
    read = event.attributes
    return Stall(
        event.time_unix_nano,
        text(read, semconv.STALL_OF) or "",
        _line(read),
        number(read, semconv.STALL_SAMPLES),
        number(read, semconv.STALL_OUT_OF),
        number(read, semconv.STALL_GIL_MS),
        text(read, semconv.CODE_STACKTRACE) or "",
    )


def _line(event: Mapping[str, Value]) -> str:
    line = number(event, semconv.CODE_LINE_NUMBER)
    path, function = (text(event, name) for name in (semconv.CODE_FILE_PATH, semconv.CODE_FUNCTION_NAME))
    return f"{path or '?'}:{'?' if line is None else int(line)} in {function or '?'}"


def _places(stack: str) -> list[str]:
    """Return the places of a stack, the innermost last: `app.py:41 in predict`."""
    found = []
    for line in stack.splitlines():
        place = _PLACE.fullmatch(line)
        found.append(line.strip() if place is None else f"{place[1]}:{place[2]} in {place[3]}")
    return found


def notes(tree: Tree, path: Path) -> Iterator[str]:
    """Yield notes on changes to the spans, and on parts that the picture lacks."""
    if path.shifted_ns:
        most = max(path.shifted_ns.values(), key=abs)
        services = sorted({tree.spans[place].service for place in path.shifted_ns})
        yield (
            f"{_many(len(path.shifted_ns), 'span')} of {', '.join(services)} moved by up to "
            f"{milliseconds(most / 1e6)}: a clock was skewed."
        )
    if path.negative:
        yield f"{_many(path.negative, 'span')} ended before they started, and count as of no duration."
    if path.other_roots:
        yield f"{_many(path.other_roots, 'span')} have no parent here either, and this is not their path."
    if path.circular:
        yield f"The parents of {_many(path.circular, 'span')} form a circle: they are on no path."


def as_json(trace: Trace) -> dict[str, Any]:
    """Return a trace as an object of JSON."""
    critical = on_path(trace.spans)
    return {
        "trace_id": trace.trace_id,
        **completeness(trace.reason),
        "spans": [_span_json(span, place in critical) for place, span in enumerate(trace.spans)],
    }


def _span_json(span: SpanRow, is_critical: bool) -> dict[str, Any]:
    events = [keys_of(one, attributes=_values(one.attributes)) for one in span.events]
    changed = {"duration_ms": span.duration_ns / 1e6, "is_critical": is_critical}
    return keys_of(span, "resource", "follows", "links", **changed, attributes=_values(span.attributes), events=events)


def _values(attributes: Mapping[str, Value]) -> dict[str, Any]:
    return {key: json_value(value) for key, value in attributes.items()}
