"""Where a request stands, by whoever works for it: its own thread or coroutine, other threads, a batch."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace.causes.in_the_way import RequestStacks
from stagetrace.instrumentation.batching.gathered_batch import GatheredBatch
from stagetrace.instrumentation.batching.queued_items import Item, queued
from stagetrace.request.request import Request
from stagetrace.request.working import put_down, take_up, workers_of, working
from stagetrace.semconv import INFERENCE
from stagetrace.sources.stacks import of_greenlet, of_request, waits_for_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WITHIN_S = 60


@pytest.fixture(autouse=True)
def _all_are_put_down() -> Iterator[None]:
    yield
    working.clear()


class Standing:
    """A thread that stands in a function until the block ends."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.begun = threading.Event()
        self.function = function
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        self.begun.set()
        self.function()

    @property
    def ident(self) -> int:
        return self.thread.ident or 0


@contextmanager
def standing(*functions: str) -> Iterator[list[int]]:
    """Run a thread for each of these ways to stand; yield their idents."""
    ends = threading.Event()
    lock = threading.Lock()
    lock.acquire()
    waits: queue.Queue[int] = queue.Queue()

    def computes() -> None:
        while not ends.is_set():
            pass

    def locked() -> None:
        with lock:
            pass

    def asks() -> None:
        waits.get()

    ways = {"computes": computes, "locked": locked, "asks": asks}
    threads = [Standing(ways[name]) for name in functions]
    for one in threads:
        one.thread.start()
    for one, name in zip(threads, functions, strict=True):
        one.begun.wait(WITHIN_S)
        while not _stands_in(one.ident, name):
            pass
    try:
        yield [one.ident for one in threads]
    finally:
        ends.set()
        lock.release()
        for _ in threads:
            waits.put(1)
        for one in threads:
            one.thread.join()


def _stands_in(ident: int, name: str) -> bool:
    frame = sys._current_frames().get(ident)
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return name in names and (name != "asks" or "wait" in names)


def of(record: Request) -> list[str]:
    return [code.co_name for code, _ in RequestStacks().of(record)[0]]


def made(thread: int) -> Request:
    record = Request()
    record.thread = thread
    return record


def test_of_threads_the_first_is_taken_that_does_not_wait() -> None:
    with standing("asks", "asks", "computes", "locked") as (own, first, second, third):
        record = made(own)
        assert "asks" in of(record)
        for worker in (first, second, third):
            take_up(record, worker)
        assert "computes" in of(record)


def test_a_thread_that_waits_for_a_lock_waits_for_no_other() -> None:
    """It may hold up the others, and nothing shows that it waits for them."""
    with standing("locked", "computes") as (own, other):
        record = made(own)
        take_up(record, other)
        assert of(record)[0] == "locked"


def test_where_all_wait_the_last_is_taken() -> None:
    with standing("asks", "asks") as (own, other):
        record = made(own)
        take_up(record, other)
        assert "asks" in of(record)


def test_a_coroutine_that_awaits_leaves_the_work_to_a_thread() -> None:
    async def awaits() -> None:
        await asyncio.sleep(WITHIN_S)

    work = awaits()
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    loop.run_until_complete(asyncio.sleep(0))
    record = made(threading.get_ident())
    record.work = work
    try:
        assert of(record) == ["sleep", "awaits"]
        assert not RequestStacks().of(record)[1]
        with standing("computes") as (worker,):
            take_up(record, worker)
            assert "computes" in of(record)
            assert RequestStacks().of(record)[1]
            put_down(worker, None)
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()


def test_a_request_stands_where_the_batch_is_that_it_is_in() -> None:
    with standing("computes") as (worker,):
        record, future = made(0), Future[Any]()
        item = Item(record, thing := object(), future)
        batch = GatheredBatch([item], 1, [])
        assert of(record) == []
        before = take_up(batch, worker)
        assert "computes" in of(record)
        put_down(worker, before)
        queued.pop(id(thing), None)


def test_a_batch_has_a_worker_while_it_calls_a_model() -> None:
    record, future = made(0), Future[Any]()
    batch = GatheredBatch([Item(record, thing := object(), future)], 1, [])

    def call() -> list[Any]:
        batch.enter(INFERENCE)
        during = workers_of(batch)
        batch.leave(INFERENCE)
        return [threading.get_ident(), *during]

    with ThreadPoolExecutor(1) as pool:
        ident, worker = pool.submit(call).result()
    assert ident == worker
    assert workers_of(batch) == []
    queued.pop(id(thing), None)


def test_an_unknown_thread_has_no_stack() -> None:
    """So an RPC has none that waits for one."""
    assert of(made(0)) == []


def test_with_an_adapter_of_ours_a_stack_begins_with_it() -> None:
    """Without one on it, the thread does something else: it sends, say."""
    with standing("computes") as (thread,):
        record = made(thread)
        assert "computes" in of(record)
        record.protocol = "asgi"
        assert of(record) == []


def test_a_greenlet_that_is_suspended_has_a_stack_of_its_own() -> None:
    greenlet = pytest.importorskip("greenlet")
    from stagetrace.patches.concurrent_futures import Job

    def inner() -> None:
        greenlet.getcurrent().parent.switch()

    record = Request()
    record.bound = True
    one = greenlet.greenlet(Job(inner, record, None))
    one.switch()
    record.greenlet, record.protocol = one, "wsgi"
    assert of(record)[0] == "inner"
    assert of_greenlet(one, sys._getframe()) == of_request(one.gr_frame)
    one.switch()
    assert of_greenlet(one, sys._getframe()) == ()  # it has ended
    assert not waits_for_thread(())
