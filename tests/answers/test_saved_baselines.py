"""The baselines of a machine, as the page shows them: the newest is the sentence, a damaged one is the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.cli.bench import baseline
from stagetrace.cli.bench.baseline import Baseline
from stagetrace.output.units import UTC

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NOON = 1_772_366_400_000_000_000


def test_the_newest_baseline_is_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert baseline.answer(UTC).sentence.startswith("No load was put on a service from this machine: stagetrace bench ")
    latencies = [*(float(one) for one in range(1, 100)), None]
    url = "http://user:s3cret@localhost:8000/predict"
    path = baseline.save(Baseline("v1", url, 50.0, "constant", NOON, NOON, latencies))
    answer = baseline.answer(UTC)
    (one,) = answer.keys["baselines"]
    assert (one["name"], one["requests"], one["failed"]) == ("v1", 100, 1)
    assert one["quantiles"] == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert "had a p99 of 99.00 ms at 50 requests/s (v1, 2026-03-01 12:00:00 UTC)" in answer.sentence
    assert "s3cret" not in str(answer)
    assert answer.complete
    path.with_name("v0.json").write_text("{")
    assert "cannot read the baseline" in (baseline.answer(UTC).reason or "")
