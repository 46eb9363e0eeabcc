"""Run pytest; run failed tests once more, alone, and list those that then pass as flaky.

Usage: run_twice.py PYTHON -m pytest ARGUMENTS. The exit code is that of the first run, or 0 if all pass the
second time. STAGETRACE_FLAKY names a file to which the list is added.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FAILED = Path(".pytest_cache/v/cache/lastfailed")
TESTS_FAILED = 1  # exit code of pytest: tests ran and some failed
MOST = 20  # more failures than these are not by chance


def main(command: list[str]) -> int:
    """Return the exit code."""
    FAILED.unlink(missing_ok=True)
    code = subprocess.run(command, check=False).returncode
    failed = sorted(map(without_group, json.loads(FAILED.read_text()))) if FAILED.exists() else []
    if code != TESTS_FAILED or not 0 < len(failed) <= MOST:
        return code
    print(f"{len(failed)} failed. Each is run once more, alone:", flush=True)  # noqa: T201
    code = subprocess.run([*command, "-n", "0", *failed], check=False).returncode
    if code == 0:
        text = "".join(f"FLAKY {test}\n" for test in failed)
        print(text, end="", flush=True)  # noqa: T201
        if os.environ.get("STAGETRACE_FLAKY"):
            with Path(os.environ["STAGETRACE_FLAKY"]).open("a") as file:
                file.write(text)
    return code


def without_group(test: str) -> str:
    """Return the name of a test without the group that pytest-xdist appends."""
    name, at, group = test.rpartition("@")
    return name if at and "]" not in group else test


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
