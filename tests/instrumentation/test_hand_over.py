"""A wait for a thread of anyio's pool is the pool's as long as no thread is free, and a late hand-over from then on."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CapacityLimiter, to_thread
from opentelemetry.trace import SpanContext

from stagetrace import guard
from stagetrace.instrumentation.thread_pools import anyio
from stagetrace.recording import pool_task
from stagetrace.recording.current_timeline import current
from stagetrace.recording.timeline import Timeline
from stagetrace.sla.breakdown import breakdown_of
from stagetrace.sources import thread_cpu
from stagetrace.sources.thread_cpu import UNKNOWN
from trees import at_its_best

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MS = 1_000_000
pytestmark = [
    pytest.mark.skipif(thread_cpu.lacks_waiting() is not None, reason=str(thread_cpu.lacks_waiting())),
]
patched: Any = SimpleNamespace(
    run_sync=getattr(to_thread.run_sync, "__wrapped__", to_thread.run_sync),
    current_default_thread_limiter=to_thread.current_default_thread_limiter,
)
anyio.patch_to_thread(patched)


@contextmanager
def request() -> Iterator[Timeline]:
    timeline = Timeline()
    timeline.bind(SpanContext(1, 1, is_remote=False), time.time_ns())
    entered = current.set(timeline)
    try:
        yield timeline
    finally:
        current.reset(entered)


@pytest.fixture(autouse=True)
def _each_is_noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pool_task, "DIVIDED_NS", 0)
    yield
    guard._switches.pop(anyio.WHERE, None)
    guard.failures.clear()


async def hop(work: Callable[[], Any], limiter: CapacityLimiter) -> tuple[int, Timeline]:
    """Return when a thread was asked for, and the timeline of the request that asked."""
    with request() as timeline:
        asked = time.time_ns()
        assert await patched.run_sync(work, limiter=limiter) == "answer"
        return asked, timeline


async def wait_until(holds: Callable[[], Any]) -> None:
    """Let the event loop run until a condition holds that nothing else tells it."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0)


def sleep() -> str:
    time.sleep(0.05)
    return "answer"


def test_with_a_token_left_all_of_the_wait_is_a_hand_over() -> None:
    async def main() -> tuple[int, Timeline]:
        return await hop(lambda: "answer", CapacityLimiter(2))

    def look() -> bool:
        asked, timeline = asyncio.run(main())
        (since, until, lacked), (_, _, back) = timeline.handed
        assert asked <= since <= until
        assert 0 <= lacked <= until - since + MS
        assert back == UNKNOWN
        segments = timeline.close(timeline.started, time.time_ns())
        assert "queue" in {segment.stage for segment in segments}
        assert "pool_wait" not in breakdown_of(segments, timeline).times
        return since - asked < 10 * MS

    assert at_its_best(look, wanted=True)  # a busy machine may stop the process between the two looks at the clock


def test_without_one_only_what_follows_the_end_of_the_work_before() -> None:
    ended = []

    async def main() -> tuple[tuple[int, Timeline], tuple[int, Timeline]]:
        limiter = CapacityLimiter(1)

        def first() -> str:
            while not limiter.statistics().tasks_waiting:
                time.sleep(0.001)
            ended.append(time.time_ns())
            return "answer"

        task = asyncio.create_task(hop(first, limiter))
        await wait_until(lambda: limiter.borrowed_tokens)
        return await asyncio.gather(task, hop(lambda: "answer", limiter))

    _, (asked, timeline) = asyncio.run(main())
    since, _, _ = timeline.handed[0]
    assert asked < ended[0] <= since


def test_an_event_loop_that_is_held_takes_a_request_back_late() -> None:
    begun, held = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        held.wait()
        return "answer"

    async def main() -> tuple[int, Timeline]:
        task = asyncio.create_task(hop(work, CapacityLimiter(1)))
        await wait_until(begun.is_set)
        held.set()
        time.sleep(0.1)  # noqa: ASYNC251 -- the fault
        return await task

    _, timeline = asyncio.run(main())
    since, until, lacked = timeline.handed[-1]
    assert until - since > 40 * MS
    assert lacked == UNKNOWN


@pytest.mark.parametrize("part", ["idle_since", "waited_for_cpu", "become_idle", "last_sample"])
def test_a_part_that_fails_changes_no_answer(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(thread_cpu, part, fails)
    asyncio.run(hop(sleep, CapacityLimiter(1)))
    assert guard.failures


class Cancelled(BaseException):
    """As what stops a task."""


def test_what_the_function_raises_comes_through_and_ends_the_task() -> None:
    def raises() -> None:
        raise Cancelled

    async def main() -> Timeline:
        with request() as timeline:
            with pytest.raises(Cancelled):
                await patched.run_sync(raises)
            return timeline

    timeline = asyncio.run(main())
    assert len(timeline.handed) == 2
    assert not guard.failures


def test_a_wait_that_is_given_up_ends_then() -> None:
    async def main() -> tuple[int, list[Any]]:
        limiter, release = CapacityLimiter(1), threading.Event()
        first = asyncio.create_task(patched.run_sync(release.wait, limiter=limiter))
        await wait_until(lambda: limiter.borrowed_tokens)
        with request() as timeline:
            waiting = asyncio.create_task(patched.run_sync(sleep, limiter=limiter))
            await wait_until(lambda: limiter.statistics().tasks_waiting)
            waiting.cancel()
            await asyncio.wait([waiting])
            given_up = time.time_ns()
            release.set()
            await first
            return given_up, timeline.close(timeline.started, time.time_ns())

    given_up, segments = asyncio.run(main())
    (wait,) = [one for one in segments if one.stage == "queue"]
    assert wait.end <= given_up
    assert not guard.failures
