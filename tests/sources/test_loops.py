"""What an event loop's thread did lately is known in intervals, few of them and from the beginning on."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from at_once import in_a_thread
from stagetrace.sources import loops, thread_cpu

pytestmark = pytest.mark.skipif(thread_cpu.lacks_waiting() is not None, reason=str(thread_cpu.lacks_waiting()))


def test_a_thread_that_slept_was_idle() -> None:
    def work() -> Any:
        start = time.time_ns()
        loops.record(start)
        time.sleep(0.1)
        return loops.recent_shares(start, time.time_ns())

    found = in_a_thread(work)
    assert sum(share.blocked for *_, share in found) >= 80_000_000


def test_a_thread_of_which_nothing_was_noted_tells_nothing() -> None:
    assert in_a_thread(lambda: loops.recent_shares(0, time.time_ns())) == []


def test_requests_that_end_at_the_same_time_share_samples_and_what_lies_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[Any] = []
    compared: list[Any] = []

    def sample(now: int | None) -> Any:
        taken.append(now or time.time_ns())
        own, _, *rest = thread_cpu.read_sample()
        return (own, taken[-1], *rest)

    def between(first: Any, last: Any) -> Any:
        compared.append((first, last))
        return thread_cpu.between(first, last)

    monkeypatch.setattr(loops, "sample", sample)
    monkeypatch.setattr(loops, "between", between)

    def work() -> Any:
        start = time.time_ns()
        for number in range(10):
            loops.record(start - 10**9 + number * 10**7)
        return [loops.recent_shares(start - 10**9, time.time_ns()) for _ in range(100)]

    found = in_a_thread(work)
    assert len(taken) == 10 + 1
    assert len(compared) == 10
    assert len(found[0]) == 10
    assert all(one == found[0] for one in found)


def test_samples_are_few_and_go_back_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def sample(now: int | None) -> Any:
        taken.append(now or time.time_ns())
        return thread_cpu.Descriptor(0), taken[-1], 0, None, 0

    monkeypatch.setattr(loops, "sample", sample)

    def work() -> Any:
        for number in range(10_000):
            loops.record(1_000_000_000 + number * 1_000_000)
        return list(loops._own.kept)

    kept = in_a_thread(work)
    assert len(taken) == 2_000  # one in five milliseconds
    assert len(kept) <= loops.MAX_KEPT
    assert all(before[thread_cpu.AT] < after[thread_cpu.AT] for before, after in pairwise(kept))
    assert kept[-1][thread_cpu.AT] == taken[-1]
