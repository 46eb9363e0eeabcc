"""A wait for a thread of anyio's pool: queue wait as long as no thread is free, wake-up latency from then on."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CapacityLimiter, to_thread

from stagetrace import guard
from stagetrace.causes.breakdown import breakdown_of
from stagetrace.patches import anyio
from stagetrace.request import working
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace.sources import thread_cpu
from stagetrace.sources.thread_cpu import UNKNOWN
from stagetrace.tracing.span_context import SpanContext
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
def request() -> Iterator[Request]:
    record = Request()
    record.bind(SpanContext(1, 1, is_remote=False), time.time_ns())
    entered = current.set(record)
    try:
        yield record
    finally:
        current.reset(entered)


@pytest.fixture(autouse=True)
def _each_wait_is_recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(working, "DIVIDED_NS", 0)
    yield
    guard._switches.pop(anyio.WHERE, None)
    guard.failures.clear()


async def run_in_pool(work: Callable[[], Any], limiter: CapacityLimiter) -> tuple[int, Request]:
    """Run `work` in the pool; return when a thread was requested, and the record of the request."""
    with request() as record:
        asked = time.time_ns()
        assert await patched.run_sync(work, limiter=limiter) == "answer"
        return asked, record


async def wait_until(holds: Callable[[], Any]) -> None:
    """Let the event loop run until a condition holds."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0)


def sleep() -> str:
    time.sleep(0.05)
    return "answer"


def test_with_a_free_thread_the_whole_wait_is_wakeup_latency() -> None:
    async def main() -> tuple[int, Request]:
        return await run_in_pool(lambda: "answer", CapacityLimiter(2))

    def look() -> bool:
        asked, record = asyncio.run(main())
        (since, until, lacked), (_, _, back) = record.wakeups
        assert asked <= since <= until
        assert 0 <= lacked <= until - since + MS
        assert back == UNKNOWN
        segments = record.close(record.started, time.time_ns()).segments()
        assert "queue" in {segment.stage for segment in segments}
        assert "pool_wait" not in breakdown_of(segments, record).times
        return since - asked < 10 * MS

    assert at_its_best(look, wanted=True)  # a busy machine may stop the process between the two looks at the clock


def test_without_a_free_thread_only_the_time_after_the_work_before_is_wakeup_latency() -> None:
    ended = []

    async def main() -> tuple[tuple[int, Request], tuple[int, Request]]:
        limiter = CapacityLimiter(1)

        def first() -> str:
            while not limiter.statistics().tasks_waiting:
                time.sleep(0.001)
            ended.append(time.time_ns())
            return "answer"

        task = asyncio.create_task(run_in_pool(first, limiter))
        await wait_until(lambda: limiter.borrowed_tokens)
        return await asyncio.gather(task, run_in_pool(lambda: "answer", limiter))

    _, (asked, record) = asyncio.run(main())
    since, _, _ = record.wakeups[0]
    assert asked < ended[0] <= since


def test_a_blocked_event_loop_resumes_a_request_late() -> None:
    begun, held = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        held.wait()
        return "answer"

    async def main() -> tuple[int, Request]:
        task = asyncio.create_task(run_in_pool(work, CapacityLimiter(1)))
        await wait_until(begun.is_set)
        held.set()
        time.sleep(0.1)  # noqa: ASYNC251 -- the fault
        return await task

    _, record = asyncio.run(main())
    since, until, lacked = record.wakeups[-1]
    assert until - since > 40 * MS
    assert lacked == UNKNOWN


@pytest.mark.parametrize("part", ["idle_since", "waited_for_cpu", "become_idle", "last_sample"])
def test_an_injected_fault_changes_no_result(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(thread_cpu, part, fails)
    asyncio.run(run_in_pool(sleep, CapacityLimiter(1)))
    assert guard.failures


class Cancelled(BaseException):
    """Like the exception that cancels a task."""


def test_an_exception_of_the_function_passes_and_ends_the_task() -> None:
    def raises() -> None:
        raise Cancelled

    async def main() -> Request:
        with request() as record:
            with pytest.raises(Cancelled):
                await patched.run_sync(raises)
            return record

    record = asyncio.run(main())
    assert len(record.wakeups) == 2
    assert not guard.failures


def test_a_cancelled_wait_ends_then() -> None:
    async def main() -> tuple[int, list[Any]]:
        limiter, release = CapacityLimiter(1), threading.Event()
        first = asyncio.create_task(patched.run_sync(release.wait, limiter=limiter))
        await wait_until(lambda: limiter.borrowed_tokens)
        with request() as record:
            waiting = asyncio.create_task(patched.run_sync(sleep, limiter=limiter))
            await wait_until(lambda: limiter.statistics().tasks_waiting)
            waiting.cancel()
            await asyncio.wait([waiting])
            cancelled_at = time.time_ns()
            release.set()
            await first
            return cancelled_at, record.close(record.started, time.time_ns()).segments()

    cancelled_at, segments = asyncio.run(main())
    (wait,) = [one for one in segments if one.stage == "queue"]
    assert wait.end <= cancelled_at
    assert not guard.failures
