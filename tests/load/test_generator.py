"""The open loop under a clock of its own: sends are punctual, and what a stall costs is measured to the nanosecond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from load.virtual import Server, run
from stagetrace.load import generator as arrivals
from stagetrace.load.generator import HOPELESS, TIMEOUT, Generator, Ids, Limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.load.generator import Run


def _ran(due: Any, answered_at: Callable[[int, float], float], **options: Any) -> Run:
    failure = options.pop("failure", lambda _number: None)
    timeout_s = options.pop("timeout_s", 30.0)

    async def main() -> Run:
        return await Generator(due, Server(answered_at, failure), timeout_s, **options).run()

    return run(main())


def _one_worker(service_s: float) -> Callable[[int, float], float]:
    """Return a first-come-first-served queue with one worker: Lindley's recursion."""
    free = [0.0]

    def answered_at(_number: int, at: float) -> float:
        free[0] = max(free[0], at) + service_s
        return free[0]

    return answered_at


def test_a_stall_is_in_the_latency_of_all_requests_that_were_due_during_it() -> None:
    """A server that stalls for 1 s at 100 requests/s: 100 requests wait, from 1 s down to 10 ms; none is left out.

    A closed loop would have seen one slow request of 900.
    """
    first: list[float] = []

    def answered_at(_number: int, at: float) -> float:
        first[:] = first or [at]
        stall = first[0] + 3.0
        return stall + 1.0 + 0.001 if stall <= at < stall + 1.0 else at + 0.001

    ran = _ran(arrivals.constant(100, 10), answered_at)
    expected = np.full(1000, 0.001)
    expected[300:400] = 1.001 - np.arange(100) / 100
    assert ran.latency_s == pytest.approx(expected, abs=1e-9)
    assert ran.late_s == pytest.approx(np.zeros(1000), abs=1e-9)
    assert ran.sent == 1000
    assert ran.stopped is None


def test_a_server_that_answers_one_after_the_other_holds_no_send_back() -> None:
    """At twice what one worker can do the backlog grows by half of what comes: latency from the intended start."""
    ran = _ran(arrivals.constant(100, 5), _one_worker(0.02))
    assert ran.latency_s == pytest.approx(0.02 + 0.01 * np.arange(500), abs=1e-9)
    assert ran.late_s == pytest.approx(np.zeros(500), abs=1e-9)


@pytest.mark.thorough
def test_poisson_arrivals_at_one_worker_take_as_long_as_queueing_theory_predicts() -> None:
    """M/D/1 by Pollaczek and Khinchine: mean wait = rho s / (2 (1 - rho)); each latency by Lindley's recursion."""
    rate, service = 30.0, 0.02
    due = arrivals.poisson(rate, 3000, seed=4)
    ran = _ran(due, _one_worker(service), timeout_s=1e9)
    free = -1.0
    expected = []
    for at in due:
        free = max(free, at) + service
        expected.append(free - at)
    assert ran.latency_s == pytest.approx(np.array(expected), abs=1e-6)
    rho = rate * service
    assert ran.latency_s.mean() == pytest.approx(service + rho * service / (2 * (1 - rho)), rel=0.05)


def test_what_is_not_answered_in_time_has_failed_and_the_rest_is_measured() -> None:
    ran = _ran(
        arrivals.constant(10, 2),
        lambda number, at: at + (100.0 if number % 4 == 0 else 0.5),
        timeout_s=2.0,
        failure=lambda number: "status 500" if number % 4 == 1 else None,
    )
    assert dict(ran.failures()) == {TIMEOUT: 5, "status 500": 5}
    assert ran.reasons[:4] == [TIMEOUT, "status 500", None, None]
    assert np.isinf(ran.latency_s[:2]).all()
    assert ran.latency_s[2:4] == pytest.approx([0.5, 0.5])


def test_sending_stops_as_soon_as_the_objective_is_surely_broken() -> None:
    """11 of 459 over 50 ms are enough (`least_over`): those still waited for count, if they are over already."""
    ran = _ran(arrivals.constant(100, 4.59), lambda _number, at: at + 0.08, limit=Limit(0.05, most=10))
    assert ran.stopped == HOPELESS
    assert 16 <= ran.sent <= 25
    assert ran.latency_s == pytest.approx(np.full(ran.sent, 0.08), abs=1e-9)


def test_requests_of_the_warm_up_break_no_objective() -> None:
    slow = lambda number, at: at + (0.5 if number < 50 else 0.01)  # noqa: E731
    ran = _ran(arrivals.constant(100, 2), slow, limit=Limit(0.05, most=10, first=50))
    assert ran.stopped is None
    assert ran.sent == 200


def test_stopping_awaits_what_is_on_its_way() -> None:
    import asyncio

    async def main() -> Run:
        server = Server(lambda _number, at: at + 1.0, lambda _number: None)
        generator = Generator(arrivals.constant(10, 10), server, 30.0)
        asyncio.get_running_loop().call_later(2.05, generator.stop, "interrupted")
        return await generator.run()

    ran = run(main())
    assert ran.stopped == "interrupted"
    assert ran.sent == 21
    assert ran.latency_s == pytest.approx(np.ones(21), abs=1e-9)


def test_ids_are_a_sampled_trace_context_of_their_own_with_a_common_beginning() -> None:
    ids = Ids()
    made = [ids.traceparent() for _ in range(200)]
    assert all(one.startswith(f"00-{ids.prefix}") and one.endswith("-01") and len(one) == 55 for one in made)
    assert len({one[3:35] for one in made}) == len({one[36:52] for one in made}) == 200
    assert Ids().prefix != ids.prefix


# Arrivals.


def test_poisson_arrivals_are_those_of_their_seed_and_have_its_statistics() -> None:
    due = arrivals.poisson(200, 100, seed=1)
    assert (due == arrivals.poisson(200, 100, seed=1)).all()
    assert len(due) != len(arrivals.poisson(200, 100, seed=2)) or (due != arrivals.poisson(200, 100, seed=2)).any()
    assert abs(len(due) - 20_000) < 4 * 20_000**0.5
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)  # exponential: as great as the mean
    counts = np.bincount(due.astype(int), minlength=100)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.45)  # index of dispersion
    assert due.max() < 100
    assert (gaps >= 0).all()


def test_constant_arrivals_are_equally_far_apart() -> None:
    assert arrivals.constant(4, 2).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert arrivals.constant(0.1, 1).tolist() == [0]


def test_a_replay_starts_requests_as_far_apart_as_they_were_to_the_nanosecond() -> None:
    starts = [1_790_000_000_123_456_789, 1_790_000_000_123_456_790, 1_790_000_003_000_000_001]
    assert arrivals.replay(starts[::-1]).tolist() == [0, 1e-9, 2.876543212]
    assert arrivals.replay(starts, speed=2).tolist() == [0, 5e-10, 1.438271606]
    sent: list[float] = []

    def answered_at(_number: int, at: float) -> float:
        sent.append(at)
        return at

    _ran(arrivals.replay(starts), answered_at)
    assert np.diff(sent) == pytest.approx([1e-9, 2.876543211], abs=1e-9)
