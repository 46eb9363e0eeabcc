"""anyio's task groups start a request's tasks as they would without us."""

from __future__ import annotations

import asyncio
import functools
import gc
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from anyio._backends import _asyncio

from stagetrace.patches.anyio import _following
from stagetrace.request.current import current
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable


STOCK: Any = _asyncio.TaskGroup
START: Any = getattr(STOCK.start_soon, "__wrapped__", STOCK.start_soon)
Followed: Any = type("Followed", (STOCK,), {"start_soon": _following(START)})


async def named(found: list[str]) -> None:
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(0)
    found.append(task.get_name())


async def fails(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


def run(begin: Callable[[Any], Any], kind: Any = Followed) -> None:
    """Start tasks in a group, for a request."""

    async def main() -> None:
        current.set(Request())
        async with kind() as group:
            begin(group)

    asyncio.run(main())


def test_a_task_has_the_name_of_its_function() -> None:
    found: list[str] = []

    def begin(group: Any) -> None:
        group.start_soon(named, found)
        group.start_soon(functools.partial(named, found))
        group.start_soon(named, found, name="given")

    run(begin, STOCK)
    expected, found = found, []
    run(begin)
    assert sorted(found) == sorted(expected)


def test_an_error_is_the_tasks_own() -> None:
    error = ValueError("own")
    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- a group of exceptions, which Python 3.10 lacks
        run(lambda group: group.start_soon(fails, error))
    assert getattr(caught.value, "exceptions", None) == (error,) or caught.value is error


@pytest.mark.parametrize("args", [(named,), (named, [], 1), (list, [])])
def test_a_wrong_call_is_refused_at_once(args: Any) -> None:
    def begin(group: Any) -> None:
        with pytest.raises(TypeError):
            group.start_soon(*args)

    run(begin)


def test_a_task_that_is_cancelled_before_it_begins_warns_of_what_it_would_without_us() -> None:
    def begin(group: Any) -> None:
        group.start_soon(named, [])
        for task in group._tasks:
            task.cancel()

    def said(kind: Any) -> set[str]:
        gc.collect()  # what other tests have left
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run(begin, kind)
            gc.collect()
        return {str(one.message) for one in seen}

    assert said(Followed) == said(STOCK)


def test_each_task_of_a_request_is_followed() -> None:
    steps: list[bool] = []

    async def work(record: Request) -> None:
        steps.append(record.step is not None and record.work is not None and record.work.cr_code is work.__code__)
        await asyncio.sleep(0)
        steps.append(record.step is not None)

    def begin(group: Any) -> None:
        record = current.get()
        group.start_soon(work, record)
        group.start_soon(work, record)

    run(begin)
    assert steps == [True] * 4
