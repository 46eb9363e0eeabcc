"""Tables on terminals of any width: nothing of a number, an id or a word is cut off, whatever the room."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stagetrace.cli.output import Column, Table, drawn

ID = "906f7089f5ba030d53ddef4e9aab1663"
TABLE = Table(
    (Column("time (UTC)"), Column("request"), Column("took", is_number=True), Column("stage"), Column("trace")),
    [
        ("2026-11-25 11:27:40.494", "POST /predict", "788.82 ms", "inference", ID),
        ("2026-11-25 11:27:40.495", "", "1234567.89 ms", "network.receive", ID),
    ],
    "Requests",
)


def lines(table: Table, width: int) -> list[str]:
    output = io.StringIO()
    console = Console(file=output, width=width, highlight=False)
    console.print(drawn(table, width), markup=False)
    return output.getvalue().splitlines()


@pytest.mark.parametrize("width", range(36, 140, 4))
def test_no_number_id_or_word_is_cut_or_broken(width: int) -> None:
    shown = lines(TABLE, width)
    assert max(map(len, shown)) <= width
    words = " ".join(shown).split()
    for cell in [column.name for column in TABLE.columns] + [cell for row in TABLE.rows for cell in row]:
        for word in cell.split():
            assert word in words, (word, shown)


def test_a_wide_terminal_has_a_line_for_each_row() -> None:
    assert len(lines(TABLE, 140)) == 4


def test_a_narrow_one_has_lines_that_stand_below_each_other() -> None:
    assert lines(TABLE, 80) == [
        "Requests",
        "time (UTC)               request                 took  stage",
        "  trace",
        "2026-11-25 11:27:40.494  POST /predict      788.82 ms  inference",
        f"  {ID}",
        "2026-11-25 11:27:40.495                 1234567.89 ms  network.receive",
        f"  {ID}",
    ]


def test_a_word_longer_than_the_terminal_is_folded_and_whole() -> None:
    path = "/" + "x" * 300
    shown = lines(Table((Column("check"), Column("found")), [("python", path)]), 40)
    assert path in "".join(line.strip() for line in shown)
    assert max(map(len, shown)) <= 40
