"""docs/compatibility.md: what was run, a line for each cell. `make compatibility` runs all cells and writes it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from matrix.cells import CELLS
from matrix.run import HEADINGS, run

PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "compatibility.md"
BEGIN: Final = "<!-- begin of the cells -->\n"
END: Final = "<!-- end of the cells -->\n"


def line(row: list[str]) -> str:
    """Return a line of the table."""
    return f"| {' | '.join(row)} |"


def text(page: str, rows: list[list[str]]) -> str:
    """Return the page with these rows in its table."""
    before, _, rest = page.partition(BEGIN)
    table = [line(list(HEADINGS)), "|" + "---|" * len(HEADINGS), *map(line, rows)]
    return before + BEGIN + "\n".join(table) + "\n" + END + rest.partition(END)[2]


def rows_in(page: str) -> list[list[str]]:
    """Return the rows of a page as it was written."""
    lines = [one for one in page.splitlines() if one.startswith("| ")]
    return [one.strip("| ").split(" | ") for one in lines[1:]]


def _write() -> None:
    rows = []
    for number, cell in enumerate(CELLS, 1):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(cell, Path(folder)))
        print(f"{number} of {len(CELLS)}: {cell}")  # noqa: T201 -- for the person who waits
    PAGE.write_text(text(PAGE.read_text(), rows))


if __name__ == "__main__":
    _write()
