"""Test runs: a failure by chance is listed, and no process outlives the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = """
import pathlib, pytest
pytestmark = [pytest.mark.xdist_group("a group"), pytest.mark.thorough]
@pytest.mark.parametrize("address", ["a@b"])
def test_it(address):
    seen = pathlib.Path("seen")
    times = len(seen.read_text()) if seen.exists() else 0
    seen.write_text("x" * (times + 1))
    assert times >= {fails}
"""
KILLED = """
import os, signal, subprocess
from leftovers import Watcher
Watcher()
print(subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_what_fails_runs_once_more_alone(fails: int, tmp_path: Path) -> None:
    """A test that then passes is listed as flaky, in the file that CI shows too."""
    (tmp_path / "test_one.py").write_text(TEXT.format(fails=fails))
    (tmp_path / "test_two.py").write_text("def test_two():\n    pass\n")
    listed = tmp_path / "flaky"
    again = [sys.executable, str(TESTS / "run_again.py")]
    pytest_alone = [sys.executable, "-m", "pytest", "-q", "-p", "xdist.plugin", "-n", "1", "--dist", "loadgroup"]
    environment = {**os.environ, "STAGETRACE_FLAKY": str(listed), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    files = ["--", "test_one.py", "test_two.py"]
    done = subprocess.run(
        [*again, *pytest_alone, *files], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (fails == 2), done.stdout
    flaky = "FLAKY test_one.py::test_it[a@b]\n" if fails == 1 else ""
    assert (listed.read_text() if listed.exists() else "") == flaky
    assert ("FLAKY" in done.stdout) == bool(flaky)
    assert done.stdout.count("1 failed. Each is run again, alone") == min(fails, 1)
    assert done.stdout.count("2 passed") == (fails == 0), "the others run once"


def test_six_failures_end_the_run(tmp_path: Path) -> None:
    """So many are not by chance, or show that much happens by chance."""
    (tmp_path / "test_one.py").write_text("".join(f"def test_{at}():\n    assert False\n" for at in range(6)))
    again = [sys.executable, str(TESTS / "run_again.py"), sys.executable, "-m", "pytest", "-q"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(again, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "run again" in done.stdout, "6 failed" in done.stdout) == (1, False, True), done.stdout


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_killed_run_leaves_no_process() -> None:
    """The watcher ends processes that pytest can no longer end."""
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=env, stdout=subprocess.PIPE, check=False)
    started = Path(f"/proc/{int(done.stdout)}/cmdline")
    deadline = time.monotonic() + 60
    while started.exists() and b"sleep" in started.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
