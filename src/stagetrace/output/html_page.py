"""Answers as one page of HTML that needs nothing else: no script, no font, no request. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from stagetrace.output.answer import Answer
from stagetrace.output.chart import Chart
from stagetrace.output.svg import svg
from stagetrace.output.table_layout import Table
from stagetrace.output.times import UTC, Zone
from stagetrace.printable import printable

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --bad: #c62828; --soft: #8882 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem }
.sentence { font-size: 1.05rem; font-weight: 600 } .bad { color: var(--bad) } .note { opacity: .75 }
.incomplete { border-left: 3px solid var(--bad); padding-left: .75rem }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.n { text-align: right }
td[colspan] { font-weight: 600; background: var(--soft) } caption { text-align: left; font-weight: 600 }
svg.chart { display: block; max-width: 45rem; margin: .75rem 0 } nav a { margin-right: 1rem }
"""


def page(title: str, answers: Sequence[Answer], zone: Zone = UTC, notes: Sequence[str] = ()) -> str:
    """Return a page with these answers; `notes` stand below its title."""
    body = "".join(_answer(one, number, zone, alone=len(answers) == 1) for number, one in enumerate(answers, 1))
    links = "".join(f'<a href="#a{number}">{_text(one.title)}</a>' for number, one in enumerate(answers, 1))
    head = f"<h1>{_text(title)}</h1>\n" + "".join(f'<p class="note">{_text(note)}</p>\n' for note in notes)
    if len(answers) > 1:
        head += f"<nav>{links}</nav>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{head}{body}</body>\n</html>\n"
    )


def _answer(answer: Answer, number: int, zone: Zone, *, alone: bool) -> str:
    head = "" if alone else f"<h2>{_text(answer.title)}</h2>\n"
    word = "sentence bad" if answer.is_bad else "sentence"
    made = f'<section id="a{number}">\n{head}<p class="{word}">{_text(answer.sentence)}</p>\n'
    if not answer.complete:
        made += f'<p class="incomplete">Incomplete: {_text(answer.reason or "")}</p>\n'
    return made + "".join(_part(part, zone) for part in answer.parts) + "</section>\n"


def _part(part: str | Table | Chart, zone: Zone) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>\n" if part else ""
    return table(part) if isinstance(part, Table) else svg(part, zone)


def table(table: Table) -> str:
    """Return a table as HTML."""
    return f'<div class="wide" tabindex="0"><table>{"".join(_lines(table))}</table></div>\n'


def _lines(table: Table) -> Iterator[str]:
    if table.title is not None:
        yield f"<caption>{_text(table.title)}</caption>"
    classes = [' class="n"' if column.is_number else "" for column in table.columns]
    heads = "".join(f"<th{how}>{_text(one.name)}</th>" for how, one in zip(classes, table.columns, strict=True))
    yield f"\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
    for row in table.rows:
        if isinstance(row, str):
            yield f'<tr><td colspan="{len(classes)}">{_text(row)}</td></tr>\n'
            continue
        yield f"<tr>{''.join(f'<td{how}>{_text(cell)}</td>' for how, cell in zip(classes, row, strict=True))}</tr>\n"
    yield "</tbody>\n"


def _text(text: str) -> str:
    return escape(printable(text))
