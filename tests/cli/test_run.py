"""`stagetrace run -- CMD`."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from services import PYTHON

if TYPE_CHECKING:
    from pathlib import Path

RUN = [PYTHON, "-m", "stagetrace.cli.main", "run"]


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("STAGETRACE")}
    return subprocess.run([*RUN, *argv], env=clean | env, capture_output=True, text=True, timeout=60, check=False)


def test_it_switches_recording_on_and_passes_the_exit_code_on() -> None:
    done = run("--", PYTHON, "-c", "import os, sys; print(os.environ['STAGETRACE']); sys.exit(7)")
    assert (done.stdout, done.returncode) == ("1\n", 7)


def test_it_lets_a_sitecustomize_that_it_hides_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    code = "import sys; print('stagetrace.activate' in sys.modules, sys.modules['sitecustomize'].__file__)"
    done = run("--", PYTHON, "-c", code, PYTHONPATH=str(tmp_path))
    # Once for the command that replaces itself, once for the program that it became.
    assert done.stdout.splitlines() == ["theirs", "theirs", f"True {tmp_path / 'sitecustomize.py'}"]


def test_arguments_of_the_command_are_its_own() -> None:
    done = run("--", PYTHON, "-c", "import sys; print(sys.argv[1:])", "--help", "--", "-x")
    assert done.stdout == "['--help', '--', '-x']\n"


def test_nothing_to_run_and_no_such_program() -> None:
    for argv, text in ((["--"], "run what?"), (["--", "no-such-program"], "there is no such program on PATH")):
        done = run(*argv)
        assert done.returncode == 2
        assert text in done.stderr
        assert len(done.stderr.splitlines()) <= 3
