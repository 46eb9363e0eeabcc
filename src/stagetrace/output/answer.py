"""The answer of a verb before it is printed, the keys of its JSON, and its Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stagetrace.output import chart
from stagetrace.output.chart import Chart
from stagetrace.output.table import Table
from stagetrace.output.units import UTC, Zone, window
from stagetrace.store.base import Partial, Selection
from stagetrace.text import printable


@dataclass(frozen=True)
class Answer(Partial):
    """One answer, of which `reason` explains what is missing, if anything is."""

    title: str  # heading of a page: `Service level objectives`
    sentence: str  # the answer, plainly: the first line
    keys: Mapping[str, Any]  # of `--json`, beside `complete`, `reason` and `sentence`; numbers are finite, or None
    parts: Sequence[str | Table | Chart] = ()  # what stands below: lines, tables, pictures
    is_bad: bool = False  # exit code 1
    is_undecided: bool = False  # exit code 2, unless it is bad: what was asked is not known
    reason: str | None = None
    steps: Sequence[str] = ()  # commands to run next, for people


def as_json(answer: Answer) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {**completeness(answer.reason), "sentence": answer.sentence, **answer.keys}


def keys_of(record: Any, *without: str, **others: Any) -> dict[str, Any]:
    """Return the fields of a record as keys of JSON: without some, and with others in place of them or beside them."""
    fields = record._asdict() if hasattr(record, "_asdict") else vars(record)
    return {**{name: value for name, value in fields.items() if name not in without}, **others}


def completeness(reason: str | None = None) -> dict[str, Any]:
    """Return the keys with which each JSON answer begins; `reason`: what is missing, if anything is."""
    return {"complete": True} if reason is None else {"complete": False, "reason": reason}


def join_reasons(reasons: Iterable[str | None]) -> str | None:
    """Return in one text what is missing, None if nothing is."""
    return "; ".join(filter(None, reasons)) or None


def no_requests(wanted: Selection, zone: Zone) -> str:
    """Return the sentence where nothing is selected."""
    return f"No requests{window(wanted.since_ns, wanted.until_ns, zone)}."


# --- An answer as Markdown: tables as tables, pictures as blocks of text. Pure.

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
