"""The tables of docs/libraries.md: what the patches of models declare.

`PYTHONPATH=src python tests/libraries_page.py` writes them. The versions are those of
`tests/model_libraries.txt`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from stagetrace.instrumentation.models.base import TRAIN, Library
from stagetrace.patches.registry import wanted
from stagetrace.semconv import INFERENCE, PREPARE, TRANSFORM

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/libraries.md"
VERSIONS = ROOT / "tests/model_libraries.txt"
BEGIN = "<!-- begin of what tests/libraries_page.py writes -->\n"
END = "<!-- end of what tests/libraries_page.py writes -->\n"
ROLES = {
    INFERENCE: "",
    PREPARE: " (preprocessing)",
    TRANSFORM: " (the inference where no model is)",
    TRAIN: " (training, in which no model call is recorded)",
}


def libraries() -> list[Library]:
    """Return all that is declared, by name."""
    modules = {patch.partition(":")[0] for patch in wanted().values()}
    found = {id(one): one for name in modules for one in vars(importlib.import_module(name)).values()}
    return sorted((one for one in found.values() if isinstance(one, Library)), key=lambda one: _name(one).lower())


def versions() -> dict[str, str]:
    """Return the version of each package with which the tests last passed."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", VERSIONS.read_text(), re.MULTILINE))


def table() -> str:
    """Return the table of libraries."""
    tested = versions()
    rows = ["| library | tested | recognised | not recognised |", "|---|---|---|---|"]
    for one in libraries():
        version = one.stand_in or tested[one.package or _name(one)]
        rows.append(f"| {_name(one)} | {version} | {_recognised(one)} | {one.not_recognised} |")
    return "\n".join([*rows, ""])


def _name(library: Library) -> str:
    return library.library or library.framework


def _recognised(library: Library) -> str:
    """Return the calls of a library, with the role of those that are no inference."""
    parts = []
    for calls in library.calls:
        names = ", ".join(f"`{calls.owner}.{name}`" if calls.owner else f"`{name}`" for name in calls.names)
        derived = ", and of classes derived from it" if calls.derived else ""
        parts.append(f"{names}{derived}{ROLES[calls.role]}")
    return "; ".join([*parts, library.recognised] if library.recognised else parts)


def page(text: str) -> str:
    """Return the page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
