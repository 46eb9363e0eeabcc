"""Tables on terminals of any width: nothing of a number, an id or a word is cut off, whatever the room."""

from __future__ import annotations

import pytest

from stagetrace.cli import output
from stagetrace.output.table import COMMON, TIME, TRACE, Column, Table, blocks, text_of

ID = "906f7089f5ba030d53ddef4e9aab1663"
COLUMNS = (Column("time (UTC)"), Column("request"), Column("took", is_number=True), Column("stage"), Column("span"))
TABLE = Table(
    COLUMNS,
    [
        ("2026-11-25 11:27:40.494", "POST /predict", "788.82 ms", "inference", ID),
        ("2026-11-25 11:27:40.495", "", "1234567.89 ms", "network.receive", ID),
    ],
    "Requests",
)
MANY = (
    Column("time (UTC)", kind=TIME),
    Column("service", kind=COMMON, leaves=2),
    Column("request"),
    Column("model", kind=COMMON, leaves=1),
    Column("status", is_number=True, kind=COMMON),
    Column("trace", kind=TRACE),
)
ROWS = [
    ("2026-11-25 11:27:40.494", "api", "POST /predict", "-", "200", ID),
    ("2026-11-25 11:27:41.494", "api", "POST /rank", "-", "200", f"906f7089f{ID[9:-1]}4"),
    ("2026-11-25 11:27:42.494", "api", "GET /health", "-", "200", f"16{ID[2:]}"),
]


def rendered(table: Table, width: int | None) -> list[str]:
    return [text_of(line) for block in blocks(table, width) for line in block]


@pytest.mark.parametrize("width", range(36, 140, 4))
def test_no_number_id_or_word_is_cut_or_broken(width: int) -> None:
    shown = rendered(TABLE, width)
    assert max(map(len, shown)) <= width
    words = " ".join(shown).split()
    for cell in [column.name for column in COLUMNS] + [cell for row in TABLE.rows for cell in row]:
        for word in cell.split():
            assert word in words, (word, shown)


def test_a_wide_terminal_has_a_line_for_each_row() -> None:
    assert len(rendered(TABLE, 140)) == len(rendered(TABLE, None)) == 4


def test_a_narrow_one_has_lines_that_stand_below_each_other() -> None:
    assert rendered(TABLE, 80) == [
        "Requests",
        "time (UTC)               request                 took  stage",
        "  span",
        "2026-11-25 11:27:40.494  POST /predict      788.82 ms  inference",
        f"  {ID}",
        "2026-11-25 11:27:40.495                 1234567.89 ms  network.receive",
        f"  {ID}",
    ]


def test_a_word_longer_than_the_terminal_is_folded_and_whole() -> None:
    path = "/" + "x" * 300
    shown = rendered(Table((Column("check"), Column("found")), [("python", path)]), 40)
    assert path in "".join(line.strip().removeprefix("python").strip() for line in shown)
    assert max(map(len, shown)) <= 40


def test_what_all_rows_share_is_shown_once_and_ids_are_shortened() -> None:
    """What none of them has is not said at all."""
    assert rendered(Table(MANY, ROWS), 80) == [
        "2026-11-25; service api; status 200",
        "time (UTC)    request        trace",
        f"11:27:40.494  POST /predict  {ID}",
        f"11:27:41.494  POST /rank     906f7089f{ID[9:-1]}4",
        f"11:27:42.494  GET /health    16{ID[2:]}",
    ]
    assert rendered(Table(MANY, [ROWS[0], ROWS[2]]), 80)[2:] == [
        "11:27:40.494  POST /predict  906f7089",
        "11:27:42.494  GET /health    166f7089",
    ]


def test_rows_of_two_days_and_services_keep_both() -> None:
    other = ("2026-11-26 00:00:00.000", "web", "GET /health", "Ranker", "200", "ab" * 16)
    assert rendered(Table(MANY, [ROWS[0], other]), 90) == [
        "status 200",
        "time (UTC)               service  request        model   trace",
        "2026-11-25 11:27:40.494  api      POST /predict  -       906f7089",
        "2026-11-26 00:00:00.000  web      GET /health    Ranker  abababab",
    ]


def test_columns_that_say_least_leave_a_narrow_line_and_are_named() -> None:
    other = ("2026-11-25 00:00:00.000", "web", "GET /health", "Ranker", "200", "ab" * 16)
    assert rendered(Table(MANY, [ROWS[0], other]), 50) == [
        "2026-11-25; status 200; columns left out: model",
        "time (UTC)    service  request        trace",
        "11:27:40.494  api      POST /predict  906f7089",
        "00:00:00.000  web      GET /health    abababab",
    ]
    assert rendered(Table(MANY, [ROWS[0], other]), 40)[:2] == [
        "2026-11-25; status 200; columns left",
        "out: service, model",
    ]


def test_headings_stand_between_rows() -> None:
    table = Table((Column("stage"), Column("p50", is_number=True)), ["api /rank", ("  queue", "1.00 ms")])
    assert rendered(table, 80) == ["stage        p50", "api /rank", "  queue  1.00 ms"]


def numbered(count: int, title: str) -> Table:
    return Table((Column("n", is_number=True),), [(str(number),) for number in range(count)], title)


def clipped(parts: list[Table | str], height: int) -> list[str]:
    return [text_of(line) for line in output.clip(parts, 80, height)]


def test_each_part_of_a_screen_has_its_share_of_the_height() -> None:
    parts: list[Table | str] = ["head", "", numbered(30, "Routes"), "", numbered(40, "Stages"), "", numbered(3, "New")]
    shown = clipped(parts, 24)
    assert len(shown) <= 24
    assert shown[:4] == ["head", "", "Routes", " n"]
    assert shown[-5:] == ["New", "n", "0", "1", "2"]
    more = [line for line in shown if line.endswith("more lines")]
    routes = shown[4 : shown.index(more[0])]
    assert more[0] == f"  ... {30 - len(routes)} more lines"
    assert len(more) == 2
    assert clipped(parts, 200) == [*clipped(parts[:5], 200), *clipped(parts[5:], 200)]
    assert not any("more lines" in line for line in clipped(parts, 200))
