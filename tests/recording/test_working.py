"""Who works for a request: as long as it does, and without being kept alive for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from stagetrace.request.request import Request
from stagetrace.request.working import put_down, take_up, worker_here, workers_of, working

greenlet: Any = pytest.importorskip("greenlet")


@pytest.fixture(autouse=True)
def _nobody_else() -> None:
    working.clear()


async def work() -> None:
    await asyncio.sleep(0)


def test_a_worker_works_for_one_request_at_a_time_and_then_for_the_one_before() -> None:
    outer, inner = Request(), Request()
    coroutine = work()
    for worker in (threading.get_ident(), greenlet.greenlet(), coroutine):
        assert take_up(outer, worker) is None
        assert take_up(inner, worker) is outer
        assert (workers_of(outer), workers_of(inner)) == ([], [worker])
        put_down(worker, outer)
        assert (workers_of(outer), workers_of(inner)) == ([worker], [])
        put_down(worker, None)
        assert working == {}
    coroutine.close()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("make", [work, greenlet.greenlet])
def test_what_is_discarded_in_the_middle_of_its_work_is_not_kept(make: Any) -> None:
    record, worker = Request(), make()
    take_up(record, worker)
    assert workers_of(record) == [worker]
    del worker
    assert working == {}


class Awaitable:
    """What a task may be made of, to which there is no weak reference."""

    __slots__ = ()


def test_what_has_no_weak_reference_is_a_worker_too() -> None:
    record, worker = Request(), Awaitable()
    assert take_up(record, worker) is None
    assert workers_of(record) == [worker]
    put_down(worker, None)
    assert working == {}


def test_a_task_is_known_by_its_coroutine_and_other_code_by_its_thread() -> None:
    async def ask() -> Any:
        return worker_here()

    coroutine = ask()
    assert asyncio.run(coroutine) is coroutine
    assert worker_here() in (threading.get_ident(), greenlet.getcurrent())
