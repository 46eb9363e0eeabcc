"""One look at all threads: what is in the way of a late request, and what is kept for those that are not there yet."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from stagetrace.causes import in_the_way
from stagetrace.causes.in_the_way import Look, collected_in, waited_behind
from stagetrace.request.request import Request
from stagetrace.request.stages import Segment
from stagetrace.request.stalls import BLOCKER, POOL, RIVAL
from stagetrace.semconv import QUEUE, QUEUE_REASON
from stagetrace.sources import gc_pauses

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stagetrace.request.stalls import Stall

WITHIN_S = 30
THREADS = 3
stop = threading.Event()


def spin() -> None:
    while not stop.is_set():
        sum(range(100))


def serve(begun: threading.Semaphore) -> int:
    begun.release()
    stop.wait(WITHIN_S)
    return threading.get_ident()


@pytest.fixture(autouse=True)
def _stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(in_the_way, "_recent", in_the_way._recent.copy())
    in_the_way._recent.clear()
    stop.clear()
    yield
    stop.set()


@contextmanager
def busy_pool() -> Iterator[ThreadPoolExecutor]:
    """Run a pool whose threads all stand in `serve`."""
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(THREADS):
            pool.submit(serve, begun)
        for _ in range(THREADS):
            begun.acquire()
        try:
            yield pool
        finally:
            stop.set()


def functions(stalls: Sequence[Stall], of: str) -> list[set[str]]:
    return [{code.co_name for code, _ in one.stack} for one in stalls if one.of == of]


def look_at(record: Request) -> list[Stall]:
    return Look(time.time_ns(), 0).in_the_way_of(record, runs=True)


def test_threads_that_compute_at_one_line_are_one_rival() -> None:
    """They share the GIL, and none of them has it for half of the time."""
    record = Request()
    threads = [threading.Thread(target=spin) for _ in range(THREADS)]
    for one in threads:
        one.start()
    try:
        deadline = time.monotonic() + WITHIN_S
        found: list[set[str]] = []
        while not any("spin" in names for names in found) and time.monotonic() < deadline:
            time.sleep(0.1)
            found = functions(look_at(record), RIVAL)
    finally:
        stop.set()
        for one in threads:
            one.join()
    assert any("spin" in names for names in found)
    assert "rival" not in {one.of for one in look_at(Request())}, "since a look before it began"


def test_all_threads_of_a_pool_are_counted_by_line() -> None:
    record = Request()
    with busy_pool() as pool:
        record.pools = (pool._threads,)
        (stall,) = (one for one in look_at(record) if one.of == POOL)
    assert (stall.threads, stall.out_of) == (THREADS, THREADS)
    assert functions([stall], POOL)[0] > {"serve"}


def wait_of(reason: str, start: int, end: int) -> list[Segment]:
    segment = Segment(QUEUE, start)
    segment.end, segment.attributes = end, {QUEUE_REASON: reason}
    return [segment]


def test_what_threads_did_is_kept_for_requests_that_waited_for_them() -> None:
    """For a socket only what its own thread did, for a server's threads what any did, and only while it waited."""
    late, other = Request(), Request()
    with busy_pool() as pool:
        late.thread, other.thread = (one.ident or 0 for one in list(pool._threads)[:2])
        at = time.time_ns()
        look = Look(at, 0)
        assert look.has_its_thread(late)
        assert look.has_its_thread(other)
        look.has_its_thread(late)
    assert functions(waited_behind(late, wait_of("socket", at - 5, at + 5)), BLOCKER) == [{"run", "serve", "wait"}]
    (stall,) = waited_behind(Request(), wait_of("server_threads", at - 5, at + 5))
    assert (stall.of, stall.threads, stall.out_of) == (POOL, 2, 2)
    assert waited_behind(Request(), wait_of("socket", at - 5, at + 5)) == []
    assert waited_behind(late, wait_of("socket", at - 5, at)) == []
    assert waited_behind(late, wait_of("socket", at + 1, at + 5)) == []
    assert waited_behind(late, wait_of("batch", at - 5, at + 5)) == []


def test_a_thread_that_waits_for_work_is_in_nobodys_way() -> None:
    record = Request()
    with ThreadPoolExecutor(1) as pool:
        record.thread = pool.submit(threading.get_ident).result()
        deadline = time.monotonic() + WITHIN_S
        while Look(time.time_ns(), 0).has_its_thread(record) and time.monotonic() < deadline:
            time.sleep(0.01)  # it has not come back from its work yet
        in_the_way._recent.clear()
        assert not Look(time.time_ns(), 0).has_its_thread(record)
    assert not in_the_way._recent


def trigger() -> tuple[int, int]:
    start = time.time_ns()
    gc_pauses.record("start", {})
    gc_pauses.record("stop", {})
    return start, time.time_ns()


def test_a_long_run_of_the_garbage_collector_keeps_where_it_was_triggered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_pauses, "LEAST_NS", 0)
    monkeypatch.setattr(gc_pauses, "LONG_NS", 0)
    gc.disable()  # no other run comes between
    try:
        start, end = trigger()
    finally:
        gc.enable()
    (run,) = collected_in(Request(), start, end + 1)
    assert run.stack[0][0].co_name == "trigger"
    assert collected_in(Request(), start - 10, start) == []
    assert run.of == RIVAL, "of no section of this request's"
