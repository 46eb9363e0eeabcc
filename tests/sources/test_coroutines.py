"""The stack of a coroutine goes down to the innermost one that it awaits, whatever stands between the two."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from stagetrace.request.loop_blockers import stepped
from stagetrace.request.request import Request
from stagetrace.sources import coroutines
from stagetrace.sources.coroutines import MAX_AWAITED, Tasks, of_coroutine
from stagetrace.sources.stacks import MAX_KEPT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator

    from stagetrace.sources.stacks import Stack

TURNS = 20  # of the loop, in which everything has begun to wait
TaskGroup: Any = getattr(asyncio, "TaskGroup", anyio.create_task_group)  # since Python 3.11
ours: ContextVar[bool] = ContextVar("ours", default=False)


async def innermost(release: asyncio.Event) -> None:
    await release.wait()


async def child(release: asyncio.Event) -> None:
    await innermost(release)


async def at_once() -> None:
    await asyncio.sleep(0)


class ByAwait:
    """An object that is awaited by a method of its own."""

    def __init__(self, release: asyncio.Event) -> None:
        self.release = release

    def __await__(self) -> Generator[Any, Any, None]:
        return (yield from child(self.release).__await__())


async def steps(release: asyncio.Event) -> AsyncIterator[int]:
    yield 1
    await child(release)
    yield 2


async def by_coroutine(release: asyncio.Event) -> None:
    await child(release)


async def by_object(release: asyncio.Event) -> None:
    await ByAwait(release)


async def by_task(release: asyncio.Event) -> None:
    await asyncio.create_task(child(release))


async def by_gather(release: asyncio.Event) -> None:
    await asyncio.gather(at_once(), child(release))


async def by_gathers(release: asyncio.Event) -> None:
    await asyncio.gather(at_once(), asyncio.gather(at_once(), child(release)))


async def by_wait(release: asyncio.Event) -> None:
    await asyncio.wait([asyncio.create_task(at_once()), asyncio.create_task(child(release))])


async def by_wait_for(release: asyncio.Event) -> None:
    await asyncio.wait_for(child(release), 60)


async def by_wait_for_task(release: asyncio.Event) -> None:
    await asyncio.wait_for(asyncio.create_task(child(release)), 60)


async def by_shield(release: asyncio.Event) -> None:
    await asyncio.shield(child(release))


async def by_task_group(release: asyncio.Event) -> None:
    async with TaskGroup() as group:
        group.create_task(at_once())
        group.create_task(child(release))


async def by_anyio(release: asyncio.Event) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(at_once)
        group.start_soon(child, release)


async def by_generator(release: asyncio.Event) -> None:
    async for _ in steps(release):
        pass


async def by_anext(release: asyncio.Event) -> None:
    iterator = steps(release)
    await anext(iterator, None)
    await anext(iterator, None)


WAYS = (
    *(by_coroutine, by_object, by_task, by_gather, by_gathers, by_wait, by_wait_for, by_wait_for_task, by_shield),
    *(by_task_group, by_anyio, by_generator, by_anext),
)


def names(stack: Stack) -> list[str]:
    return [code.co_name for code, _ in stack]


def read(work: Any, tasks: Tasks | None = None) -> tuple[Stack, bool]:
    return of_coroutine(work, None, tasks or Tasks(), lambda context: context.get(ours, False))


def stack_of(way: Callable[[asyncio.Event], Awaitable[None]], belongs: bool = False) -> Stack:
    """Return where a coroutine function stands that waits for an event."""

    async def main() -> Stack:
        release = asyncio.Event()
        work = way(release)
        ours.set(belongs)
        task = asyncio.ensure_future(work)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        stack, runs = read(work)
        release.set()
        await task
        assert not runs
        return stack

    return asyncio.run(main())


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_down_to_what_is_awaited(way: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    found = names(stack_of(way))
    assert found[:2] == ["wait", "innermost"]  # the first is asyncio's
    assert found[2] == "child"
    assert found[-1] == way.__name__


def test_a_line_is_that_of_the_await() -> None:
    (line,) = [line for code, line in stack_of(by_coroutine) if code is innermost.__code__]
    assert line == innermost.__code__.co_firstlineno + 1


def test_of_several_tasks_the_first_is_taken() -> None:
    async def first(release: asyncio.Event) -> None:
        await innermost(release)

    async def way(release: asyncio.Event) -> None:
        await asyncio.gather(at_once(), first(release), child(release))

    async def in_group(release: asyncio.Event) -> None:
        async with TaskGroup() as group:
            group.create_task(first(release))
            group.create_task(child(release))

    assert "first" in names(stack_of(way))
    if hasattr(asyncio, "TaskGroup"):  # anyio names its tasks otherwise than in their order
        assert "first" in names(stack_of(in_group))


def test_the_task_that_runs_is_taken() -> None:
    """It keeps the loop from the others."""
    begun, go_on = threading.Event(), threading.Event()
    found: list[tuple[Stack, bool]] = []

    async def runs() -> None:
        await asyncio.sleep(0)
        begun.set()
        blocks()

    def blocks() -> None:
        go_on.wait(60)

    async def way(release: asyncio.Event) -> None:
        await asyncio.gather(innermost(release), runs())

    async def main(works: list[Any]) -> None:
        release = asyncio.Event()
        works.append(way(release))
        task = asyncio.ensure_future(works[0])
        await asyncio.sleep(0.01)
        release.set()
        await task

    works: list[Any] = []
    loop = threading.Thread(target=lambda: asyncio.run(main(works)))
    loop.start()
    assert begun.wait(60)
    while "wait" not in names(found[-1][0] if found else ()):  # the lock of `go_on`
        frame = sys._current_frames()[loop.ident or 0]
        found.append(of_coroutine(works[0], frame, Tasks(), lambda _: False))
        time.sleep(0.001)
    go_on.set()
    loop.join()
    stack, is_running = found[-1]
    assert is_running
    assert names(stack)[-3:] == ["blocks", "runs", "way"]


def test_a_listener_for_the_disconnect_leaves_the_work_to_another_task_of_the_request() -> None:
    """So Starlette streams a response under uvicorn."""
    from stagetrace.protocols.asgi_request import AsgiRequest

    async def listen(release: asyncio.Event) -> None:
        async def receive() -> Any:
            await release.wait()
            return {"type": "http.disconnect"}

        listening: Any = AsgiRequest.__new__(AsgiRequest)
        listening._has_body = True
        task = asyncio.create_task(child(release))
        await listening.receive(receive)
        await task

    assert names(stack_of(listen, belongs=True))[:3] == ["wait", "innermost", "child"]
    assert "innermost" not in names(stack_of(listen, belongs=False))


def test_what_takes_from_another_task_of_the_request_leaves_the_work_to_that() -> None:
    """So FastAPI makes the events of a stream, in tasks whose steps are followed; the first one has no code, either."""
    request = Request()

    async def followed(work: Any) -> None:
        await stepped(work, request)

    async def way(release: asyncio.Event) -> None:
        taken = asyncio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(followed, asyncio.Event().wait())
            group.start_soon(followed, child(release))
            await taken.wait()

    async def main() -> Stack:
        release = asyncio.Event()
        work = way(release)
        ours.set(True)
        task = asyncio.ensure_future(work)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        stack, _ = of_coroutine(work, None, Tasks(), lambda context: context.get(ours, False), tells)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return stack

    def tells(stack: Stack) -> bool:
        return "child" in names(stack)

    assert names(asyncio.run(main()))[:3] == ["wait", "innermost", "child"]


def test_what_has_ended_has_no_stack() -> None:
    async def main() -> tuple[Stack, bool]:
        work = at_once()
        await work
        return read(work)

    assert asyncio.run(main()) == ((), False)


def test_a_deep_stack_is_bounded() -> None:
    async def deeper(release: asyncio.Event, depth: int) -> None:
        if depth:
            await deeper(release, depth - 1)
        else:
            await innermost(release)

    assert len(stack_of(lambda release: deeper(release, MAX_AWAITED // 2))) == MAX_KEPT


def test_among_too_many_tasks_none_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "child" in names(stack_of(by_task_group))
    monkeypatch.setattr(coroutines, "MAX_TASKS", 0)
    assert "child" not in names(stack_of(by_task_group))
    assert "by_task_group" in names(stack_of(by_task_group))


def test_objects_of_the_application_run_no_code() -> None:
    """A callback may refer to an object that does something when its attributes are read."""

    class Touchy:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    async def main() -> Stack:
        release, touchy = asyncio.Event(), Touchy()
        task = asyncio.create_task(child(release))
        task.add_done_callback(partial(lambda _touchy, _task: None, touchy))
        work = by_task_group(release)
        other = asyncio.ensure_future(work)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        stack, _ = read(work)
        release.set()
        await asyncio.gather(task, other)
        return stack

    assert "innermost" in names(asyncio.run(main()))
