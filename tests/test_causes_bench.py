"""The fault benchmark labels each request with the fault that its generator produced, and its arithmetic is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.causes.matrix import NOTHING, Named, matrix, shares
from benchmarks.causes.run import EVERY, LOADS
from benchmarks.measure import wilson

from stagetrace.causes.cause import WORDS
from stagetrace.sources import socket_wait, thread_cpu

BENCH = Path(__file__).parent.parent / "benchmarks" / "causes" / "run.py"


@pytest.mark.parametrize(
    ("right", "whole", "interval"),
    [(95, 100, (0.8882, 0.9785)), (10, 10, (0.7225, 1.0)), (0, 10, (0.0, 0.2775)), (0, 0, (0.0, 1.0))],
)
def test_wilsons_interval(right: int, whole: int, interval: tuple[float, float]) -> None:
    assert wilson(right, whole) == pytest.approx(interval, abs=1e-4)


def named(truth: str, word: str, *, withheld: bool = False) -> Named:
    return Named(f"case of {truth}", "none", truth, word, withheld)


SOME = [
    *(named("gc", "gc") for _ in range(8)),
    named("gc", "compute"),
    named("gc", "cpu_wait", withheld=True),
    named("cpu_wait", "cpu_wait", withheld=True),
    named(NOTHING, "unknown"),
    named(NOTHING, "cpu_wait"),
]


def test_the_matrix_has_a_row_for_each_truth_and_a_column_for_each_word() -> None:
    found = matrix("Some", SOME)
    assert list(found.columns) == ["", "gc", "cpu_wait", "compute", "unknown"]
    assert found.rows == [
        ["gc", "8", "1", "1", "."],
        ["cpu_wait", ".", "1", ".", "."],
        [NOTHING, ".", "1", ".", "1"],
    ]


def test_a_cpu_that_was_missing_though_nobody_made_that_counts_as_wrong_and_is_shown_apart() -> None:
    rows = {row[0]: row for row in shares("truth", SOME, ("gc", "cpu_wait", NOTHING)).rows}
    assert rows["gc"][1:3] == ["10", "80.0% (8/10)"]
    assert rows["gc"][4] == "88.9% (8/9)"
    assert rows["cpu_wait"][2] == rows["cpu_wait"][4] == "100.0% (1/1)"
    assert rows[NOTHING][2] == rows[NOTHING][4] == "50.0% (1/2)"
    assert rows["all"][2] == "76.9% (10/13)"


@pytest.mark.usefixtures("services")
@pytest.mark.skipif(
    thread_cpu.lacks_waiting() is not None or socket_wait.SOURCE.lacks is not None, reason="the kernel tells too little"
)
def test_a_slow_dependency_is_made_and_named(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    load = next(iter(LOADS))
    options = ("--seed", "3", "--breaches", "4", "--only", "slow dependency", "--load", load, "--json", str(file))
    argv = [sys.executable, str(BENCH), *options]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(file.read_text())
    assert [one["truth"] for one in result["named"]] == ["downstream"] * 4
    assert [one["word"] for one in result["named"]].count("downstream") >= 3  # a busy machine adds causes of its own
    assert "| downstream " in done.stdout
    assert "sentences 0 count more time" in done.stdout
    assert f"Seed {result['seed']}, " in done.stdout


def test_each_word_that_can_be_told_is_made() -> None:
    """Except `mixed` and `unknown`, which have no fault."""
    source = "".join(Path(BENCH.parent, name).read_text() for name in ("faults.py", "ordinary.py"))
    made = {word for word in WORDS if f'"{word}"' in source}
    assert set(WORDS) - made == {"mixed", "unknown"}
    assert len({case.name for case in EVERY}) == len(EVERY)
