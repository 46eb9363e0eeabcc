"""One trace as lines of text: verdicts first, then the tree of spans with a bar each. Pure: rows in, lines out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final, NamedTuple

from stagetrace import semconv
from stagetrace.output import stalls
from stagetrace.output.span_lines import Line, by_time, calls, is_blamed, lines_of, share, visits
from stagetrace.output.times import UTC, Zone, shown
from stagetrace.output.units import milliseconds
from stagetrace.output.verdicts import verdict_of
from stagetrace.printable import printable
from stagetrace.store.base import SERVER, SpanRow, Trace

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
    """Return the threshold and the duration of one entry span, beneath them why it was missed and where it stood."""
    found = verdict_of(span, spans)
    reasons = (f"  {name}: {value}" for name, value in found.reasons)
    return [f"{found.word} {found.sentence}", *reasons, *stalls.lines_of(span)]


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
        yield f"{shown:<{label_width}} {bar:<{bar_width}} {took:>12} {_share(line):>7}{marks}".rstrip()


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


def _share(line: Line) -> str:
    """Return the part of the entry span's time that this span takes."""
    found = share(line)
    return "" if found is None else f"{100 * found:.1f} %"
