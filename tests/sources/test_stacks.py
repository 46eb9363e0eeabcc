"""What a thread does for those that wait for it: its work, or nothing while it waits for some."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
import uvloop
from anyio import to_thread

from stagetrace.sources.stacks import WORKER_THREADS, of_threads, of_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stagetrace.sources.stacks import Stack

WITHIN_S = 30
stop = threading.Event()


def busy() -> None:
    stop.wait(WITHIN_S)


async def busy_task() -> None:
    busy()


async def idle(ident: list[int]) -> None:
    ident.append(threading.get_ident())
    while not stop.is_set():  # noqa: ASYNC110 -- set by another thread
        await anyio.sleep(0.02)


async def blocked(ident: list[int]) -> None:
    ident.append(threading.get_ident())
    await busy_task()


async def called_back(ident: list[int]) -> None:
    ident.append(threading.get_ident())
    asyncio.get_running_loop().call_soon(busy)
    await idle(ident)


LOOPS = ("asyncio", "uvloop", "trio")


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    stop.clear()
    yield
    stop.set()


@contextmanager
def in_a_thread(work: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WITHIN_S)


def names(stack: Stack) -> list[str]:
    return [code.co_name for code, _ in stack]


def seen(ident: list[int], is_enough: Callable[[Stack, str], bool]) -> tuple[Stack, str]:
    """Look at a thread until what it does is as expected."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if ident:
            stack, giver = of_work(of_threads().get(ident[0]))
            if is_enough(stack, giver):
                return stack, giver
        time.sleep(0.001)
    raise AssertionError((ident, names(stack), giver))


def run(loop: str, main: Callable[[list[int]], Any], ident: list[int]) -> None:
    if loop == "trio":
        trio.run(main, ident)
    else:
        {"asyncio": asyncio.run, "uvloop": uvloop.run}[loop](main(ident))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_waits_does_no_work(loop: str) -> None:
    ident: list[int] = []
    with in_a_thread(lambda: run(loop, idle, ident)):
        seen(ident, lambda stack, giver: bool(giver) and not stack)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_task_that_blocks_a_loop_is_its_work(loop: str) -> None:
    ident: list[int] = []
    with in_a_thread(lambda: run(loop, blocked, ident)):
        stack, _ = seen(ident, lambda stack, _: "busy" in names(stack))
    found = names(stack)
    assert found[found.index("busy") :][:3] == ["busy", "busy_task", "blocked"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_callback_that_blocks_a_loop_is_its_work(loop: str) -> None:
    ident: list[int] = []
    with in_a_thread(lambda: run(loop, called_back, ident)):
        stack, _ = seen(ident, lambda stack, _: "busy" in names(stack))
    assert names(stack)[-1] == "busy"


def test_the_threads_of_an_executor() -> None:
    ident: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: ident.append(threading.get_ident())).result()
        seen(ident, lambda stack, giver: giver.endswith("thread.py") and not stack)
        pool.submit(busy)
        seen(ident, lambda stack, _: "busy" in names(stack))
        stop.set()


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_worker_threads_of_anyio(loop: str) -> None:
    ident: list[int] = []

    async def main(main_ident: list[int]) -> None:
        await to_thread.run_sync(lambda: ident.append(threading.get_ident()))
        await idle(main_ident)
        stop.clear()
        await to_thread.run_sync(busy)

    with in_a_thread(lambda: run(loop, main, [])):
        seen(ident, lambda stack, giver: giver in WORKER_THREADS and not stack)
        stop.set()  # of being idle
        _, giver = seen(ident, lambda stack, _: "busy" in names(stack))
    assert giver in WORKER_THREADS


def test_of_a_thread_of_which_nothing_is_known_no_work_is_known() -> None:
    ident: list[int] = []

    def work() -> None:
        ident.append(threading.get_ident())
        busy()

    with in_a_thread(work):
        assert seen(ident, lambda _, giver: not giver) == ((), "")
