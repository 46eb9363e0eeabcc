"""An answer as Markdown: tables as tables, pictures as blocks of text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from stagetrace.output import chart
from stagetrace.output.answer import Answer
from stagetrace.output.table_layout import Table
from stagetrace.output.times import UTC, Zone
from stagetrace.printable import printable

_WIDTH: Final = 80
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#~])")


def markdown(answer: Answer, zone: Zone = UTC) -> str:
    """Return an answer as a document."""
    lines = [f"# {_escaped(answer.title)}", "", _escaped(answer.sentence)]
    if not answer.complete:
        lines += ["", f"**Incomplete:** {_escaped(answer.reason or '')}"]
    for part in answer.parts:
        lines.append("")
        if isinstance(part, Table):
            lines += _table(part)
        elif isinstance(part, str):
            lines.append(_escaped(part))
        else:
            title, *drawn = chart.lines(part, _WIDTH, zone=zone)
            lines += [_escaped(title), "", "```text", *drawn, "```"]
    return "\n".join([*lines, ""])


def _table(table: Table) -> Iterator[str]:
    """Yield the lines of a table; a heading of rows is a row with one cell."""
    if table.title is not None:
        yield from (_escaped(table.title), "")
    yield _row([column.name for column in table.columns])
    yield _row(["--:" if column.is_number else "---" for column in table.columns], escape=False)
    for row in table.rows:
        yield _row([row, *[""] * (len(table.columns) - 1)] if isinstance(row, str) else row)


def _row(cells: Sequence[str], *, escape: bool = True) -> str:
    return f"| {' | '.join(_escaped(cell) if escape else cell for cell in cells)} |"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", printable(text))
