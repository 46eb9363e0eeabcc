"""What `pip install 'stagetrace[backend]'` brings is enough for every command over a local store."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cli import literal
from cli.literal import trace_id
from cli.running import environment

if TYPE_CHECKING:
    from pathlib import Path

# Neither an import nor find_spec finds what is hidden. Not by None in sys.modules, which PyArrow takes for pandas.
HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, *more):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, *more)

sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
from stagetrace.cli.main import main
for command in {commands}:
    print(command, "ended with", main(command))
"""


def brought() -> set[str]:
    """Return the names of the distributions that an installation with the extra `backend` brings."""
    pending = [("stagetrace", "backend")]
    found: set[str] = set()
    while pending:
        name, extra = pending.pop()
        found.add(name)
        with suppress(PackageNotFoundError):  # of another platform
            needed = [Requirement(text) for text in requires(name) or ()]
            names = [
                canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": extra})
            ]
            pending += [(one, "") for one in names if one not in found]
    return found


@pytest.fixture(scope="module")
def hidden() -> list[str]:
    there = brought()
    return sorted(
        module
        for module, names in packages_distributions().items()
        if not there & {canonicalize_name(name) for name in names}
    )


@pytest.mark.thorough
def test_every_command_does_with_what_is_brought(hidden: list[str], tmp_path: Path) -> None:
    assert "sklearn" in hidden
    assert "duckdb" not in hidden
    store = str(tmp_path / "store")
    spans = literal.write(tmp_path)
    commands = [
        ["import", str(spans)],
        ["services"],
        ["breaches", "--each", "--since", "1970-01-01"],
        ["trace", trace_id(1)],
        ["tail", "--since", "1970-01-01"],
        ["stages", "--since", "1970-01-01"],
        ["requests", "--since", "1970-01-01"],
        ["watch", "--once", "--since", "1970-01-01"],
        ["query", "SELECT * FROM requests"],
        *(["export", str(tmp_path / f"out{suffix}")] for suffix in (".parquet", ".jsonl", ".pb", ".csv")),
        ["prune", "--before", "1d"],
    ]
    check(hidden, {(*command, "--store", store): 0 for command in commands})


@pytest.mark.thorough
def test_each_answer_does_with_what_is_brought(hidden: list[str], tmp_path: Path) -> None:
    """All but `bench`, whose client is an extra of its own."""
    store = ("--store", str(tmp_path / "store"))
    report = ("report", "--all", "--since", "1970-01-01", *store)
    check(hidden, {("import", str(literal.write(tmp_path)), *store): 0, report: 1})


def check(hidden: list[str], commands: dict[tuple[str, ...], int]) -> None:
    """Run commands in one process, and check what each ends with."""
    script = HIDING.format(hidden=hidden, commands=list(commands))
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    ends = [line for line in done.stdout.splitlines() if " ended with " in line]
    assert ends == [f"{command} ended with {code}" for command, code in commands.items()]
