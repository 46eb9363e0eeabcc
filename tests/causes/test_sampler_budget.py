"""Sampling has its bounds in CPU time, requests and memory; what it leaves out is counted."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from stagetrace.causes import stall_sampler
from stagetrace.causes.baseline import Baselines
from stagetrace.causes.stall_sampler import (
    MOST_LATE,
    MOST_OF_LOOK_NS,
    MOST_SAMPLES,
    ONE_OF,
    SAVED_NS,
    Budget,
    StallSampler,
)
from stagetrace.policy.policy import Policy
from stagetrace.request.in_flight import InFlight
from stagetrace.request.request import Request
from stagetrace.request.stalls import MOST_KEPT, REQUEST, Stall
from stagetrace.sources import gc_pauses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sources.stacks import Stack

MS = 1_000_000


class Clock:
    """The clocks of the budget."""

    def __init__(self) -> None:
        self.now = self.cpu = 10**12

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return self.now

    def thread_time_ns(self) -> int:
        return self.cpu


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stall_sampler, "time", made)
    return made


def test_what_the_first_look_imports_takes_nothing_of_the_budget(clock: Clock) -> None:
    """It would rest for so long that a worker which dies half a second later says not where it stood."""
    budget = Budget()
    budget.begin()
    clock.cpu += 100 * MS
    budget.leave_out()
    clock.cpu += MS
    assert budget.is_left()
    assert budget.end() <= clock.now


def test_looks_take_their_share_of_a_cpu_and_what_was_saved_at_most(clock: Clock) -> None:
    chance = random.Random(1)
    for longest in (MS // 100, MS, 50 * MS):
        budget, began, used = Budget(), clock.now, 0
        for _ in range(1_000):
            budget.begin()
            took = chance.randrange(longest)
            clock.now += took
            clock.cpu += took
            used += took
            clock.now = max(clock.now, budget.end())
            assert used <= SAVED_NS + (clock.now - began) // ONE_OF + longest


def test_a_few_looks_after_a_while_are_not_put_off(clock: Clock) -> None:
    budget = Budget()
    for _ in range(SAVED_NS // MS):
        budget.begin()
        clock.cpu += MS
        assert budget.end() <= clock.now
    budget.begin()
    clock.cpu += MS
    assert budget.end() > clock.now


def test_a_run_of_the_collector_in_a_look_is_not_charged(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would rest for six seconds."""
    monkeypatch.setattr(gc_pauses, "paused_ns", lambda _start, _end: 90 * MS)
    budget = Budget()
    budget.begin()
    clock.cpu += 91 * MS
    assert budget.end() <= clock.now
    budget.begin()
    assert not budget.is_short()
    clock.cpu += SAVED_NS // 2
    assert budget.is_short()


def test_a_look_ends_once_it_has_taken_long(clock: Clock) -> None:
    budget = Budget()
    budget.begin()
    assert budget.is_left()
    clock.cpu += MOST_OF_LOOK_NS
    assert not budget.is_left()


@pytest.fixture
def in_flight(monkeypatch: pytest.MonkeyPatch) -> InFlight:
    made = InFlight()
    monkeypatch.setattr(stall_sampler, "in_flight", made)
    return made


@pytest.fixture
def sampler(in_flight: InFlight) -> StallSampler:
    """Return a sampler without a thread, of requests that are late after 10 ms."""
    made = StallSampler()
    made.add(Policy.parse("* within 10ms"), Baselines())
    in_flight.bound_ns = 10 * MS
    return made


@pytest.fixture
def thread() -> Iterator[int]:
    """A thread that waits."""
    go, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go.wait(60)

    made = threading.Thread(target=wait)
    made.start()
    begun.wait(60)
    assert made.ident is not None
    yield made.ident
    go.set()
    made.join()


def late(in_flight: InFlight, thread: int, count: int, now: int) -> list[Request]:
    """Return requests that have just become late, of a thread that waits."""
    records = [Request(start=now - 10 * MS) for _ in range(count)]
    for one in records:
        one.thread = thread
    in_flight.requests.update(records)
    return records


def test_what_there_is_no_time_for_is_counted_and_comes_first_the_next_time(
    sampler: StallSampler, in_flight: InFlight, thread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    records = late(in_flight, thread, 6, now)
    left = iter([True, *[False] * 4, *[True] * 3, False, False])
    monkeypatch.setattr(sampler._budget, "is_left", lambda: next(left))
    sampler.look(now)
    assert sorted((len(one.stalls), one.skipped_stalls) for one in records) == [(0, 1)] * 4 + [(1, 0)] * 2
    sampler.look(now + MS)
    assert sorted((len(one.stalls), one.skipped_stalls) for one in records) == [(1, 1)] * 6
    assert sampler.skipped == 6
    for one in records:
        one.abandon()


def test_the_next_look_is_put_off_and_what_it_misses_is_counted(
    sampler: StallSampler, in_flight: InFlight, thread: int, clock: Clock
) -> None:
    now = time.time_ns()
    (record,) = late(in_flight, thread, 1, now)
    sampler._budget = Budget()
    sampler._budget._saved = -(10**9)
    sampler.look(now)
    assert in_flight.rest_until > clock.now + 60 * 10**9
    sampler.look(now + 1_000 * MS)  # by then all of its times are over
    assert len(record.stalls) == 2
    assert record.skipped_stalls == (MOST_SAMPLES - 1) // 2 - 1  # each second time is none where the budget is short
    record.abandon()


def test_requests_beyond_the_most_are_counted(sampler: StallSampler, in_flight: InFlight, thread: int) -> None:
    now = time.time_ns()
    records = late(in_flight, thread, MOST_LATE + 3, now)
    sampler._budget.is_left = lambda: True  # type: ignore[method-assign]
    sampler.look(now)
    assert sorted(len(one.stalls) for one in records) == [0] * 3 + [1] * MOST_LATE
    assert sampler.skipped == sum(one.skipped_stalls for one in records) == 3
    for one in records:
        one.abandon()


def test_equal_stacks_of_a_request_are_kept_once_and_only_so_many_are() -> None:
    record = Request()
    code = test_equal_stacks_of_a_request_are_kept_once_and_only_so_many_are.__code__

    def stack(line: int) -> Stack:
        return tuple((code, line + at) for at in range(3))

    for at in range(3 * MOST_KEPT):
        record.add_stalls([Stall(at, REQUEST, stack(at % 2))])
    assert len(record.stalls) == MOST_KEPT
    assert len({id(one.stack) for one in record.stalls}) == 2
    record.abandon()
