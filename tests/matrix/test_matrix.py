"""Each cell of the matrix answers as untraced and is recorded, and docs/compatibility.md has its line."""

from __future__ import annotations

import subprocess
from datetime import date
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from matrix.cells import BETA, CELLS, LIMIT_MS, NONE, SERVED_BY, Cell, marked
from matrix.environment import AS_OF, environment
from matrix.page import PAGE, rows_in, text
from matrix.pythons import CLAIMED, NOT_TO_BE_HAD
from matrix.run import run
from services import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

IMPORT_ALL = """
import importlib, pkgutil, stagetrace
recording = "api causes instrumentation otlp.encode otlp.export patches policy process_status protocols request "
recording += "runtime sla sources system tracing"
for folder in (*map("stagetrace.{}".format, recording.split()), "stagetrace_contrib"):
    package = importlib.import_module(folder)
    print(folder)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{folder}."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert not error.name.startswith("stagetrace"), error  # a library that is not installed
        print(module.name)
"""


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_a_cell_is_as_the_page_has_it(cell: Cell, tmp_path: Path) -> None:
    """The page has a line for each cell, in their order."""
    rows = rows_in(PAGE.read_text())
    assert len(rows) == len(CELLS), "`make compatibility` writes the page anew"
    assert run(cell, tmp_path) == rows[CELLS.index(cell)]


def test_the_page_says_what_was_not_run() -> None:
    page = PAGE.read_text()
    assert text(page, rows_in(page)) == page
    assert all(f"Python {version}" in page for version in NOT_TO_BE_HAD)
    assert f"{date.fromisoformat(AS_OF):%d %B %Y}" in page
    assert f"`* within {LIMIT_MS}ms`" in page


def test_the_cells_have_each_python_and_the_pairs_that_matter() -> None:
    assert {cell.python for cell in CELLS} == set(CLAIMED)
    assert len(set(CELLS)) == len(CELLS)
    of_otel = {(cell.otel, cell.version) for cell in CELLS if cell.otel != NONE}
    ways = {otel for otel, _ in of_otel}
    assert of_otel == {(way, version) for way in ways for version in BETA}
    pairs = [pair for cell in CELLS for pair in combinations((cell.python.rstrip("t"), cell.app, cell.otel), 2)]
    assert {(app, way) for app in SERVED_BY for way in (NONE, *ways)} - set(pairs) <= {
        ("asgi", "opentelemetry-instrument"),  # which has no instrumentation that it could apply
        ("wsgiref", "opentelemetry-instrument"),
    }


@pytest.mark.usefixtures("services")
@pytest.mark.thorough
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.app == "wsgiref" and cell.otel == NONE], ids=str)
def test_each_recording_module_can_be_imported(cell: Cell) -> None:
    argv = [environment(cell).python, "-W", "error", "-c", IMPORT_ALL]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 200
