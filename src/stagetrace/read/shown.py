"""How a notebook shows rows, answers and traces: HTML that needs no script, no font and no server. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from stagetrace.output.breaches import BREACH, verdict_of
from stagetrace.output.html import STAGES, svg, table
from stagetrace.output.table import Column, Table
from stagetrace.output.trace import by_time, stall_lines
from stagetrace.output.units import milliseconds
from stagetrace.output.units import shown as written
from stagetrace.page.trace_picture import picture
from stagetrace.store.base import SERVER
from stagetrace.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.output.answer import Answer
    from stagetrace.output.chart import Chart
    from stagetrace.output.units import Zone
    from stagetrace.store.base import Trace

_ROWS: Final = 20
_CELL: Final = 120  # characters
_SPANS: Final = 500
_OTHER: Final = "#8a8a8a"  # of a span of no stage
# Nested, so that it is about nothing else of the notebook.
_STYLE: Final = """<style>.stagetrace {
  --bad: #c62828; --line: #8886; max-width: 70rem;
  p { margin: .3rem 0 } .bad { color: var(--bad) } .soft { opacity: .75 }
  .incomplete { border-left: 3px solid var(--bad); padding-left: .6rem }
  table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums }
  th, td { text-align: left; padding: .15rem .7rem .15rem 0; border-bottom: 1px solid var(--line) }
  .n { text-align: right }
  .wide { overflow-x: auto } svg.chart { display: block; max-width: 45rem; margin: .5rem 0 }
  svg text { fill: currentColor }
  .span { display: grid; grid-template-columns: minmax(10rem, 32%) minmax(0, 1fr) 10rem; height: 1.5rem }
  .span .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; border-right: 1px solid var(--line) }
  .span .took { text-align: right; font-variant-numeric: tabular-nums } .span svg { width: 100%; height: 1.2rem }
  .swatch { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .3rem }
}</style>
"""


def rows(found: pa.Table, sentence: str) -> str:
    """Return the first rows of a table behind a sentence on all of them."""
    columns = [Column(name) for name in found.column_names]
    values = [one.slice(0, _ROWS).to_pylist() for one in found.columns]
    cells = [[_cell(value) for value in row] for row in zip(*values, strict=True)]
    more = f"; the first {_ROWS} are shown" if found.num_rows > _ROWS else ""
    return _whole([_line(f"{sentence}{more}"), table(Table(columns, cells)) if columns else ""])


def _cell(value: object) -> str:
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _CELL else f"{text[:_CELL]}..."


def answer(found: Answer, zone: Zone) -> str:
    """Return an answer: its sentence, what it lacks, its tables and pictures, and what to run next."""
    return _whole(
        [
            _line(found.sentence, "bad" if found.is_bad else "", strong=True),
            *_lacks(found.reason),
            *(_part(part, zone) for part in found.parts if part),
            *(f"<p>Next: <code>{_text(step)}</code></p>\n" for step in found.steps),
        ]
    )


def _part(part: str | Table | Chart, zone: Zone) -> str:
    if isinstance(part, str):
        return _line(part)
    return table(part) if isinstance(part, Table) else svg(part, zone)


# --- The waterfall of a trace, out of what the page draws its own of.


def trace(found: Trace, zone: Zone, note: str | None) -> str:
    """Return a trace: the verdict on each request, and its spans in the order of the tree, each with its bar."""
    drawn, notes = picture(found)
    rows, took = drawn["rows"], max(1, drawn["took"])
    start = min(span.start_unix_nano for span in found.spans)
    about = f"trace {found.trace_id}, {written(start, zone, 6)} {zone.name}, {milliseconds(drawn['took'] / 1e6)}"
    cut = [f"The first {_SPANS} of {len(rows):,} spans are drawn; print(trace) has all."] if len(rows) > _SPANS else []
    return _whole(
        [
            _line(about, "soft"),
            *_verdicts(found),
            *_lacks(found.reason),
            *(_line(one, "soft") for one in (*([note] if note else []), *notes, *cut)),
            *_spans(rows[:_SPANS], took),
            _legend(rows[:_SPANS]),
        ]
    )


def _verdicts(found: Trace) -> Iterator[str]:
    for span in sorted((one for one in found.spans if one.kind == SERVER), key=by_time):
        verdict = verdict_of(span, found.spans)
        yield _line(f"{verdict.word} {verdict.sentence}", "bad" if verdict.word == BREACH else "", strong=True)
        for name, value in verdict.reasons:
            yield _line(f"{name}: {value}")
        stacks = "\n".join(map(_text, stall_lines(span)))
        if stacks:
            yield f"<pre>{stacks}</pre>\n"


def _spans(rows: Sequence[Mapping[str, Any]], took: int) -> Iterator[str]:
    for row in rows:
        service = row.get("service")
        name = f"{service} {row['name']}" if service else row["name"]
        count = f" x{row['count']:g}" if row.get("count") else ""
        marks = "".join(f" [{mark}]" for mark, is_so in _MARKS.items() if row.get(is_so))
        share = "" if row.get("share") is None else f" {100 * row['share']:.1f} %"
        bad = " bad" if row.get("blamed") or row.get("error") else ""
        yield (
            f'<div class="span"><div class="name{bad}" style="padding-left:{min(row["depth"], 20) * 0.9:g}rem" '
            f'title="{_text(name)}">{_text(name)}{count}{marks}</div>{_bar(row, took)}'
            f'<div class="took">{milliseconds(row["took"] / 1e6)}{share}</div></div>\n'
        )


_MARKS: Final = {"error": "error", "culprit": "blamed"}


def _bar(row: Mapping[str, Any], took: int) -> str:
    """Return the bar of a span: its time, the critical path beneath, time that no span covers, stacks above."""
    colour = STAGES.get(row.get("stage") or "", _OTHER)
    how = {"entry": 'fill="none" stroke="currentColor"', "stage": f'fill="{colour}"'}
    look = how.get(row["kind"], f'fill="{colour}" fill-opacity=".55"')
    parts = [_rectangle(row["at"], row["at"] + row["took"], took, 'y="5" height="12"', look)]
    for begin, end in row.get("hatched", ()):
        parts.append(_rectangle(begin, end, took, 'y="7" height="8"', 'fill="#fff" fill-opacity=".55"'))
    for begin, end in row.get("path", ()):
        parts.append(_rectangle(begin, end, took, 'y="18" height="2"', 'fill="currentColor"'))
    for at, _, _, words in row.get("stalls", ()):
        tick = _rectangle(at, at, took, 'y="0" height="4"', 'fill="#c62828"')
        parts.append(f"<g><title>{_text(words)}</title>{tick}</g>")
    words = "; ".join(_words(row))
    return (
        '<svg viewBox="0 0 1000 20" preserveAspectRatio="none" role="img">'
        f"<title>{_text(words)}</title>{''.join(parts)}</svg>"
    )


def _words(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"from {milliseconds(row['at'] / 1e6)}, {milliseconds(row['took'] / 1e6)}"
    if row.get("critical"):
        yield "on the critical path"
    for phrase, ms in row.get("waits", ()):
        yield f"{'at most ' if row.get('most') else ''}{milliseconds(ms)} {phrase}, unseen by spans"
    if row.get("note"):
        yield row["note"]


def _rectangle(begin: int, end: int, took: int, place: str, look: str) -> str:
    x, wide = 1000 * begin / took, max(2.0, 1000 * (end - begin) / took)
    return f'<rect x="{min(x, 998):.1f}" width="{wide:.1f}" {place} {look}/>'


def _legend(rows: Iterable[Mapping[str, Any]]) -> str:
    found = list(rows)
    used = {row.get("stage") for row in found}
    stages = "".join(
        f'<span class="swatch" style="background:{colour}"></span>{stage} &nbsp; '
        for stage, colour in STAGES.items()
        if stage in used
    )
    words = ["line beneath: on the critical path"]
    words += ["pale: time that no span covers"] if any(row.get("hatched") for row in found) else []
    words += ["red tick: a stack was sampled"] if any(row.get("stalls") for row in found) else []
    return f'<p class="soft">{stages}{"; ".join(words)}</p>\n'


# --- What all of them are made of.


def _whole(parts: Iterable[str]) -> str:
    return f'<div class="stagetrace">{_STYLE}{"".join(parts)}</div>\n'


def _lacks(reason: str | None) -> Iterator[str]:
    if reason is not None:
        yield _line(f"Incomplete: {reason}", "incomplete")


def _line(text: str, kind: str = "", *, strong: bool = False) -> str:
    inner = f"<strong>{_text(text)}</strong>" if strong else _text(text)
    return f'<p class="{kind}">{inner}</p>\n' if kind else f"<p>{inner}</p>\n"


def _text(text: str) -> str:
    return escape(printable(text))
