"""The names of parts of stagetrace into which tests inject faults."""

from __future__ import annotations


def parts(table: str) -> list[str]:
    """Return `MODULE:NAME` for each name of a table, of which each line is `MODULE: NAME NAME ...`.

    A module is named below `stagetrace`, one of `stagetrace_contrib` in full.
    """
    lines = (line.split(":") for line in table.splitlines() if line.strip())
    return [f"{in_full(module.strip())}:{name}" for module, names in lines for name in names.split()]


def in_full(module: str) -> str:
    """Return the whole name of a module, or of a part of it."""
    return module if module.startswith("stagetrace_contrib.") else f"stagetrace.{module}"
