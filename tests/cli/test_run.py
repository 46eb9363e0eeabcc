"""`stagetrace run -- CMD`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

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


CODE = "import sys; print(sys.flags.no_site)"
WITHOUT_SITE = (
    "-S APP; -uS APP; -IS APP; -Sm app; -Sc CODE; -bSE -c CODE; -X dev -S APP; -Xdev -W error -S APP; -WS -S APP"
)
WITH_SITE = "APP -S; -I APP; -m app -S; -c CODE -S; -sc CODE -S; -W S -c CODE; -WS APP -S; -XS APP; -X S APP; -- APP -S"
LONG = "--check-hash-based-pycs always -S APP"


@pytest.mark.parametrize("line", [*WITHOUT_SITE.split("; "), LONG, *WITH_SITE.split("; ")])
def test_python_without_site_is_refused_and_nothing_else_is(line: str, tmp_path: Path) -> None:
    """Recording could not start there. Python itself says whether it is one."""
    app = tmp_path / "app.py"
    app.write_text(CODE)
    argv = [PYTHON, *({"APP": str(app), "CODE": CODE}.get(word, word) for word in line.split())]
    path = {"PYTHONPATH": str(tmp_path)}
    alone = subprocess.run(argv, env={**os.environ, **path}, capture_output=True, text=True, timeout=60, check=True)
    done = run("--", *argv, **path)
    if alone.stdout == "0\n":
        assert (done.returncode, done.stdout) == (0, alone.stdout)
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert f"cannot record {PYTHON} -S" in done.stderr
        assert "Leave -S out" in done.stderr
        assert len(done.stderr.splitlines()) <= 3


def test_an_option_of_another_program_is_its_own() -> None:
    assert run("--", "sort", "-S", "1M", "/dev/null").returncode == 0


def test_what_is_proposed_instead_works(tmp_path: Path) -> None:
    """A program may start recording itself, if it finds the package."""
    (tmp_path / "app.py").write_text(
        "import sys; sys.path += PATH; from stagetrace.activate import from_environment; from_environment()\n"
        "print(any(type(one).__name__ == 'PostImportFinder' for one in sys.meta_path))".replace("PATH", repr(sys.path))
    )
    argv = [PYTHON, "-S", str(tmp_path / "app.py")]
    done = subprocess.run(argv, env={**os.environ, "STAGETRACE": "1"}, capture_output=True, timeout=60, check=False)
    assert done.stdout.strip() == b"True"
