"""Ranks of one request among others: of each part, and by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from answers.made import NOON, Made, reading, store
from stagetrace.analysis.estimates import Sample
from stagetrace.analysis.latency_map import Rank, Ranks, ask_ranks

if TYPE_CHECKING:
    from pathlib import Path


def ranks(folder: Path, requests: list[Made], took_ms: float, stages: dict[str, float]) -> Ranks:
    with reading(store(folder, requests)) as relations:
        return ask_ranks(relations, took_ms, stages)


def test_a_rank_is_the_share_that_took_less(tmp_path: Path) -> None:
    made = [Made(n, NOON + n, {"inference": float(n), **({"queue": 1.0} if n <= 19 else {})}) for n in range(1, 101)]
    found = ranks(tmp_path / "store", made, 98.0, {"queue": 0.5, "inference": 98.0, "tokenize": 1.0})
    request, queue, inference = found.ranks
    assert (request.part, request.below, request.stored, request.label) == ("request", 0.97, 100, "p97")
    assert request.median_ms == pytest.approx(51, rel=0.03)
    assert (queue.part, queue.below, queue.median_ms, queue.stored, queue.label) == ("queue", None, None, 19, None)
    assert (inference.part, inference.below) == ("inference", 0.97)


def test_sampled_requests_count_by_weight(tmp_path: Path) -> None:
    """A breach stands for itself; each of the twenty good ones, of which one in four was kept, for four."""
    made = [Made(n, NOON + n, {"inference": 10.0}, within_ms=50, probability=0.25) for n in range(1, 21)]
    late = [Made(n, NOON + n, {"inference": 90.0}, within_ms=50, probability=0.25) for n in range(21, 41)]
    found = ranks(tmp_path / "store", [*made, *late], 90.0, {"inference": 90.0})
    assert found.ranks[0].below == pytest.approx(80 / 100)
    assert found.sample.is_estimate


def test_a_label_never_promises_more_than_there_is() -> None:
    def label(below: float) -> str | None:
        return Rank("request", 1.0, below, 1.0, 20).label

    assert [label(one) for one in (0.0, 0.979, 0.99, 0.9919, 0.99999, 1.0)] == [
        "p0",
        "p97",
        "p99",
        "p99.1",
        "p99.9",
        "p99.9",
    ]


def test_what_is_unusual_exceeds_its_median() -> None:
    """By at least a tenth of what the worst one does."""
    ranks = [
        Rank(part, took, 0.5, median, 40)
        for part, took, median in (
            ("request", 200.0, 90.0),
            ("queue", 20.0, 5.0),
            ("preprocess", 10.0, 9.5),
            ("inference", 100.0, 10.0),
            ("postprocess", 1.0, 3.0),
            ("handler", 9.0, None),
        )
    ]
    found = Ranks(tuple(ranks), Sample(40, is_estimate=False, is_unknown=False)).unusual
    assert [one.part for one in found] == ["inference", "queue"]
