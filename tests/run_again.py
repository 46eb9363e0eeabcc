"""Run pytest; run failed tests once more, alone, and list those that then pass as flaky.

Usage: run_again.py PYTHON -m pytest OPTION ... [-- FILE ...]. The exit code is that of the last run.
STAGETRACE_FLAKY names a file to which the list is added.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FAILED = Path(".pytest_cache/v/cache/lastfailed")
TESTS_FAILED = 1  # exit code of pytest: tests ran and some failed
MOST = 5  # more failures than these fail the run, by chance or not


def main(command: list[str]) -> int:
    """Return the exit code."""
    at = command.index("--") if "--" in command else len(command)
    options, files = command[:at], command[at + 1 :]
    code, failed = run([*options, *files])
    if code != TESTS_FAILED or not 0 < len(failed) <= MOST:
        return code
    print(f"{len(failed)} failed. Each is run again, alone:", flush=True)  # noqa: T201
    code, again = run([*options, "-n", "0", *failed])
    if code in (0, TESTS_FAILED):
        list_flaky([test for test in failed if test not in again])
    return code


def run(command: list[str]) -> tuple[int, list[str]]:
    """Run pytest; return its exit code, and the names of the tests that failed."""
    FAILED.unlink(missing_ok=True)
    code = subprocess.run(command, check=False).returncode
    return code, sorted(map(without_group, json.loads(FAILED.read_text()))) if FAILED.exists() else []


def without_group(test: str) -> str:
    """Return the name of a test without the group that pytest-xdist appends."""
    name, at, group = test.rpartition("@")
    return name if at and "]" not in group else test


def list_flaky(tests: list[str]) -> None:
    """Print the tests as flaky, and add them to the file that CI shows."""
    text = "".join(f"FLAKY {test}\n" for test in tests)
    print(text, end="", flush=True)  # noqa: T201
    if os.environ.get("STAGETRACE_FLAKY"):
        with Path(os.environ["STAGETRACE_FLAKY"]).open("a") as file:
            file.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
