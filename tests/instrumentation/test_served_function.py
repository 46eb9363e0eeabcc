"""Functions that a model server calls once a request: recorded or not, and whatever fails, they do what they did."""

from __future__ import annotations

import asyncio
import inspect
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context

from stagetrace import guard
from stagetrace.causes.in_the_way import RequestStacks
from stagetrace.instrumentation import served_call
from stagetrace.instrumentation.served_call import ServedCall, served
from stagetrace.request.current import current

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def called(items: list[int]) -> list[int]:
    return [1 // one for one in items]


async def awaited(items: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return called(items)


def generated(items: list[int]) -> Iterator[int]:
    for one in items:
        yield 1 // one


async def streamed(items: list[int]) -> AsyncIterator[int]:
    for one in items:
        yield 1 // one


async def _listed(steps: AsyncIterator[int]) -> list[int]:
    return [one async for one in steps]


KINDS: list[tuple[Callable[..., Any], Callable[[Any], Any]]] = [
    (called, lambda result: result),
    (awaited, asyncio.run),
    (generated, list),
    (streamed, lambda result: asyncio.run(_listed(result))),
]


def begin() -> ServedCall | None:
    return ServedCall("any", {}, Context())


@guard.guarded
def fails() -> ServedCall | None:
    raise OSError("ours")


@pytest.mark.parametrize("part", ["", "_enter_guarded", "note_chunk", "leave", "end", "fail", "cancel"])
@pytest.mark.parametrize("start", [begin, fails, lambda: None])
@pytest.mark.parametrize(("function", "collect"), KINDS)
def test_a_call_is_as_before(
    function: Any, collect: Any, start: Any, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part:
        broken = guard.guarded_end(lambda *_: 1 // 0)
        monkeypatch.setattr(ServedCall, part, broken)
    wrapped = served(function, start)
    assert inspect.signature(wrapped) == inspect.signature(function)
    for is_kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert is_kind(wrapped) == is_kind(function)
    within = copy_context()  # which a broken part leaves as it is
    assert within.run(lambda: collect(wrapped([1, 1]))) == [1, 1]
    with pytest.raises(ZeroDivisionError):
        within.run(lambda: collect(wrapped([1, 0])))


@pytest.mark.parametrize(("function", "collect"), KINDS)
def test_the_call_is_current_while_the_function_runs_and_ends_with_it(function: Any, collect: Any) -> None:
    calls: list[ServedCall] = []
    seen: list[Any] = []

    class Item(int):
        def __rfloordiv__(self, other: int) -> int:
            seen.append(current.get())
            return other

    def start() -> ServedCall:
        calls.append(ServedCall("any", {}, Context()))
        return calls[-1]

    assert collect(served(function, start)([Item(1), Item(1)])) == [1, 1]
    (call,) = calls
    assert seen == [call.request] * 2
    assert current.get() is None
    chunks = call.request.stream
    assert (0 if chunks is None else chunks.count) == (2 if function in (generated, streamed) else 0)


def test_a_generator_that_is_left_is_cancelled() -> None:
    calls: list[ServedCall] = []

    def start() -> ServedCall:
        calls.append(ServedCall("any", {}, Context()))
        return calls[-1]

    steps = served(generated, start)([1, 1])
    next(steps)
    steps.close()
    assert calls[0].request.disconnect == served_call.CANCELLED
    assert current.get() is None


def test_a_late_call_is_sampled_in_the_task_that_serves_it() -> None:
    """And not on the thread of its event loop, which serves others meanwhile."""
    calls: list[ServedCall] = []

    def begin_noted() -> ServedCall:
        calls.append(ServedCall("any", {}, Context()))
        return calls[0]

    async def stands(begun: asyncio.Event, release: asyncio.Event) -> None:
        begun.set()
        await release.wait()

    async def look() -> list[str]:
        begun, release = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(served(stands, begin_noted)(begun, release))
        await begun.wait()
        stack, runs, *_ = RequestStacks().of(calls[0].request)
        release.set()
        await serving
        assert not runs
        return [code.co_name for code, _ in stack]

    names = asyncio.run(look())
    assert "stands" in names
    assert "look" not in names
