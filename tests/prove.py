"""Run the heavy tests, a file at a time, and write a row for each into docs/proof.md: `make test-heavy`.

With files as arguments those alone; the rows of all others stay, so that hours of tests need not be one run.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/proof.md"
HEAD: Final = "| what | tried | result | minutes | on | commit |\n|---|---|---|---|---|---|\n"
_HEAVY: Final = ("-m", "heavy or heavier")
_ROW: Final = re.compile(r"^\| .*?\]\(\.\./(tests/[^)]+)\) \|.*\n", re.MULTILINE)
_PATIENCE_S: Final = 5400
_TESTS_FAILED: Final = 1  # exit code of pytest: tests ran and some failed


def files() -> list[str]:
    """Return the files of `tests` that have heavy tests."""
    listed = pytest("--collect-only", *_HEAVY, "tests")
    if listed.returncode:
        raise SystemExit(listed.stdout)
    return sorted({line.partition("::")[0] for line in listed.stdout.splitlines() if "::" in line})


def pytest(*options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with tests at their full size."""
    argv = [sys.executable, "-m", "pytest", "-q", *options]
    env = os.environ | {"STAGETRACE_HEAVY": "1"}
    return subprocess.run(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False)


def prove(file: str) -> tuple[str, bool]:
    """Run the heavy tests of a file; return its row, and whether all is well."""
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        done = pytest(f"--timeout={_PATIENCE_S}", *_HEAVY, f"--junit-xml={report.name}", file)
        if done.returncode not in (0, _TESTS_FAILED):
            raise SystemExit(done.stdout)
        cases = list(ET.parse(report.name).iter("testcase"))  # noqa: S314 -- pytest's own
    minutes = (time.monotonic() - began) / 60
    failed = [
        case.attrib["name"] for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    if failed:
        print(done.stdout, flush=True)  # noqa: T201
    words = [f"{len(cases) - len(failed) - skipped} passed"]
    words += [f"{skipped} skipped"] if skipped else []
    words += [f"**{len(failed)} failed**: {', '.join(f'`{one}`' for one in failed)}"] if failed else []
    tried = Counter(
        one.attrib["value"] for case in cases for one in case.iter("property") if one.get("name") == "tried"
    )
    shown = "; ".join(f"{text} ({times} times)" if times > 1 else text for text, times in tried.items())
    what = (ast.get_docstring(ast.parse((ROOT / file).read_text("utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
    cells = [f"{what} [{Path(file).stem}](../{file})", shown, "; ".join(words), f"{minutes:.1f}", today(), commit()]
    return f"| {' | '.join(cells)} |\n", not failed


def today() -> str:
    """Return the date of today."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def commit() -> str:
    """Return the commit, with a `+` where the code that runs has changed since."""
    short = ("git", "rev-parse", "--short=8", "HEAD")
    changed = ("git", "status", "--porcelain", "src", "tests")
    short_id, others = (
        subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout for argv in (short, changed)
    )
    return short_id.strip() + ("+" if others.strip() else "")


def put(row: str) -> None:
    """Put a row into the page, in place of that of the same file; rows are in the order of their files."""
    before, _, table = PAGE.read_text("utf-8").partition(HEAD)
    rows = {found[1]: found[0] for found in _ROW.finditer(table + row)}
    after = _ROW.sub("", table)
    PAGE.write_text(before + HEAD + "".join(rows[file] for file in sorted(rows)) + after, "utf-8")


def main() -> int:
    """Return the exit code: 1 where a test failed."""
    is_well = True
    chosen = sys.argv[1:] or files()
    for number, file in enumerate(chosen, 1):
        row, passed = prove(file)
        put(row)
        is_well &= passed
        print(f"{number}/{len(chosen)} {row}", end="", flush=True)  # noqa: T201
    return 0 if is_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
