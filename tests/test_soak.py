"""A process that serves for long neither grows nor leaks: `benchmarks/soak.py`, with a million requests on request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from heavy import scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"
MOST_GROWN_KB = 2048


def soak(folder: Path, requests: int, *options: str) -> dict[str, Any]:
    file = folder / "soak.json"
    argv = [sys.executable, str(SOAK), "--requests", str(requests), "--json", str(file), *options]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def assert_leaks_nothing(readings: Sequence[dict[str, int]]) -> None:
    first, last = readings[0], readings[-1]
    for what in ("threads", "descriptors"):
        assert last[what] <= first[what], readings


def assert_all_accounted_for(result: dict[str, Any], threads: str) -> None:
    """Check that each span arrived or was counted as lost; each request has an entry span and stages."""
    counts, requests = result["counts"][threads], sum(result["parts"])
    lost = sum(counts[outcome] for outcome in ("dropped", "dropped_breaches", "refused", "rejected", "lost"))
    assert counts["received"] == result["received"][threads] + lost, counts
    assert counts["received"] > requests * 2, counts


@pytest.mark.sample
@pytest.mark.usefixtures("services")
def test_no_thread_and_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """Four event loops at once, in threads that start and end four times."""
    result = soak(tmp_path, scaled(1_000, 50_000, 1_000), "--readings", "4", "--threads", "4")
    assert_leaks_nothing(result["readings"]["4"][1:])  # by the first, a busy machine may not have connected yet
    assert_all_accounted_for(result, "4")


@pytest.mark.heavy("1,000,000 requests")
@pytest.mark.parametrize("variant", ["stagetrace", "stagetrace, 1 % sampled"])
@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_million_requests_do_not_make_it_grow(threads: str, variant: str, tmp_path: Path) -> None:
    """At most 2 MB more than after the first hundred thousand, when all caches are filled and the queue was full."""
    result = soak(tmp_path, 1_000_000, "--threads", threads, "--variant", variant)
    readings = result["readings"][threads]
    assert_leaks_nothing(readings)
    assert readings[-1]["rss_kb"] - readings[0]["rss_kb"] <= MOST_GROWN_KB, readings
    if variant == "stagetrace":
        assert_all_accounted_for(result, threads)
