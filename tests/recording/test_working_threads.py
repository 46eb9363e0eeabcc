"""Threads of pools, and threads, greenlets and tasks in which a request is resumed, are known as long as they work."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace.api.carrier import carry, resume
from stagetrace.patches.concurrent_futures import Job
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace.request.working import (
    PoolTask,
    put_down,
    take_up,
    this_worker,
    threads_of,
    worker_here,
    workers_of,
    working,
)
from stagetrace.system.threads import get_ident

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 8
ROUNDS = 200


@pytest.fixture(autouse=True)
def _all_are_put_down() -> Iterator[None]:
    yield
    assert working == {}


def opened() -> Request:
    record = Request()
    record.bound = True
    return record


def test_many_threads_may_begin_and_end_at_once() -> None:
    record, together = Request(), threading.Barrier(AT_ONCE)
    seen: list[bool] = []

    def work() -> None:
        for _ in range(ROUNDS):
            together.wait(60)
            worker = this_worker()
            before = take_up(record, worker)
            together.wait(60)
            seen.append(len(threads_of(record)) == AT_ONCE)
            together.wait(60)
            put_down(worker, before)

    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * AT_ONCE * ROUNDS
    assert threads_of(record) == []


def test_the_one_that_began_first_is_the_first() -> None:
    record = Request()
    for worker in (3, 1, 2):
        take_up(record, worker)
    put_down(3, None)
    take_up(record, 3)
    assert threads_of(record) == [1, 2, 3]
    for worker in (3, 1, 2):
        put_down(worker, None)


def raising(found: list[Any], record: Request) -> None:
    found.append(threads_of(record))
    raise RuntimeError


def test_a_task_of_anyio_is_known_until_it_ends() -> None:
    record, found = Request(), []
    limiter = SimpleNamespace(available_tokens=1)
    task = PoolTask(record, lambda: found.append(threads_of(record)), {}, limiter)
    with ThreadPoolExecutor(1) as pool:
        ident = pool.submit(get_ident).result()
        pool.submit(task).result()
        failing = PoolTask(record, lambda: raising(found, record), {}, limiter)
        with pytest.raises(RuntimeError):
            pool.submit(failing).result()
    assert found == [[ident], [ident]]
    assert threads_of(record) == []


def test_a_job_of_an_executor_is_known_until_it_ends() -> None:
    record, found = opened(), []
    with ThreadPoolExecutor(1) as pool:
        ident = pool.submit(get_ident).result()
        pool.submit(Job(lambda: found.append(threads_of(record)), record, pool)).result()
        with pytest.raises(RuntimeError):
            pool.submit(Job(lambda: raising(found, record), record, pool)).result()
    assert found == [[ident], [ident]]
    assert threads_of(record) == []


def test_a_job_whose_request_has_ended_works_for_none() -> None:
    record, found = opened(), []
    job = Job(lambda: found.append(threads_of(record)), record, None)
    record.freeze()
    job()
    assert found == [[]]


def carried(record: Request) -> dict[str, str]:
    token = current.set(record)
    try:
        return carry()
    finally:
        current.reset(token)


def test_a_thread_in_which_a_request_is_resumed_is_known() -> None:
    record = opened()
    carrier = carried(record)
    found: list[Any] = []

    def work() -> None:
        with resume(carrier):
            found.append((get_ident(), threads_of(record)))
        found.append(threads_of(record))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(thread.ident, [thread.ident]), []]


def test_a_task_in_which_a_request_is_resumed_is_known() -> None:
    record = opened()
    carrier = carried(record)

    async def work() -> list[Any]:
        with resume(carrier):
            task: Any = asyncio.current_task()
            assert workers_of(record) == [task.get_coro()] == [worker_here()]
            await asyncio.sleep(0)
            return [threads_of(record), *workers_of(record)]

    work_ = work()
    assert asyncio.run(work_) == [[], work_]
    assert workers_of(record) == []


def test_a_greenlet_is_a_worker_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gevent or eventlet has put its own `sleep` in the place of that of threads."""
    greenlet = pytest.importorskip("greenlet")
    monkeypatch.setattr("stagetrace.request.working.sleep", None)
    record, other = Request(), Request()

    def work(mine: Request) -> None:
        worker = this_worker()
        assert worker is greenlet.getcurrent()
        before = take_up(mine, worker)
        greenlet.getcurrent().parent.switch()
        put_down(worker, before)

    first, second = greenlet.greenlet(work), greenlet.greenlet(work)
    first.switch(record)
    second.switch(other)
    assert (workers_of(record), workers_of(other)) == ([first], [second])
    assert threads_of(record) == []
    first.switch()
    assert (workers_of(record), workers_of(other)) == ([], [second])
    second.switch()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_no_workers_of_its_parent() -> None:
    record = Request()
    take_up(record, 1)
    pid = os.fork()
    if pid == 0:
        os._exit(len(working))
    put_down(1, None)
    assert os.waitpid(pid, 0)[1] == 0
