"""How a command ends that was interrupted, or whose answer nobody takes: soon, by its exit code, with no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backend.processes import WITHIN_S, Lines, started, until
from cli import literal
from cli.running import COMMAND, environment
from stagetrace.cli import main

# What libraries do with the exception: another error of it, an answer as if nothing had been, a wait that does not end.
OTHER_ERROR = "raise RuntimeError('Query interrupted') from None"
STORE_ERROR = "raise StagetraceError('numpy is not installed') from None"
NO_END = "time.sleep(100)"
SWALLOWING = """
import signal, sys, time
from stagetrace.cli import main
from stagetrace.errors import StagetraceError

def run(given):
    try:
        print("running", flush=True)
        time.sleep(100)
    except KeyboardInterrupt:
        {then}

main._run = run
sys.exit(main.main(["services"]))
"""


BUSY_S = 2  # much more than a start takes: the query runs


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has had."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("then", [OTHER_ERROR, STORE_ERROR, NO_END])
def test_ctrl_c_ends_a_command_whatever_a_library_makes_of_it(then: str) -> None:
    with started([sys.executable, "-c", SWALLOWING.format(then=then)], env=environment()) as process:
        assert Lines(process.stdout).next() == "running"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.thorough
def test_ctrl_c_ends_a_query_that_duckdb_is_in(tmp_path: Path) -> None:
    sql = "SELECT count(*) FROM range(10000000) AS a, range(10000000) AS b WHERE a.range + b.range = -1"
    argv = [*COMMAND, "query", sql, "--store", str(literal.write(tmp_path))]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with started(argv, env=environment(TMPDIR=str(temporary))) as process:
        until(lambda: _cpu_s(process.pid) >= BUSY_S, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, *output) == (130, b"", b"")
    assert not [*temporary.iterdir()]


def test_a_limit_of_time_ends_what_cannot_be_interrupted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from stagetrace.cli.console import *\nwith time_limit(0, 'late'): time.sleep(100)"],
        env=environment(),
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"stagetrace: late\n")


def test_a_fault_of_ours_is_no_interruption_and_no_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And never 1, which says that the answer is bad; what went wrong stays to be read."""

    def run(given: list[str]) -> int:
        raise RuntimeError(given)

    monkeypatch.setattr(main, "_run", run)
    assert main.main(["services"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("Traceback (most recent call last):")
    assert "\nRuntimeError: ['services']\nstagetrace: this is a fault of stagetrace itself" in errors
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "verb", [["breaches", "--each", "--json", "--fail"], ["stages"], ["query", "FROM spans", "--csv"]]
)
def test_an_answer_that_cannot_be_written_is_no_answer(tmp_path: Path, verb: list[str], unbuffered: str) -> None:
    """And never 1, which says that there is a breach."""
    argv = [*COMMAND, *verb, "--store", str(literal.write(tmp_path))]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            argv,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "stagetrace: cannot write the answer: No space left on device\ngive stdout a place that takes it\n"
    )


def test_streams_that_are_closed_end_no_command(tmp_path: Path) -> None:
    argv = [*COMMAND, "breaches", "--each", "--store", str(literal.write(tmp_path))]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *argv], env=environment(), timeout=60, check=False)
    assert done.returncode == 0
