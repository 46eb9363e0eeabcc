"""The names of parts of stagetrace into which tests inject faults."""

from __future__ import annotations


def parts(table: str) -> list[str]:
    """Return `stagetrace.MODULE:NAME` for each name of a table, of which each line is `MODULE: NAME NAME ...`."""
    lines = (line.split(":") for line in table.splitlines() if line.strip())
    return [f"stagetrace.{module.strip()}:{name}" for module, names in lines for name in names.split()]
