"""The lag of event loops: measured while requests begin on them, and nothing of it outlives a loop."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from stagetrace.sources import loops
from stagetrace.system.threads import local

if TYPE_CHECKING:
    from collections.abc import Callable

MAKERS = [asyncio.new_event_loop, uvloop.new_event_loop]
current: ContextVar[Any] = ContextVar("current")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(loops, "take", found.append)
    monkeypatch.setattr(loops, "_timers", local())
    return found


@pytest.mark.parametrize("make", MAKERS)
def test_a_blocked_loop_shows_as_one_measurement_of_about_that_time(
    make: Callable[[], asyncio.AbstractEventLoop], taken: list[int]
) -> None:
    async def serve() -> None:
        loops.watch()
        loops.watch()
        await asyncio.sleep(0.25)
        before = len(taken)
        assert before >= 1
        time.sleep(0.6)  # noqa: ASYNC251 -- that is the point
        await asyncio.sleep(0.3)
        assert max(taken) > 400_000_000
        assert sum(one > 400_000_000 for one in taken[before:]) == 1

    loop = make()
    loop.run_until_complete(serve())
    loop.close()


@pytest.mark.parametrize("make", MAKERS)
def test_it_ends_with_requests_keeps_no_loop_running_and_nothing_of_a_request(
    make: Callable[[], asyncio.AbstractEventLoop], taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Record:
        pass

    async def serve() -> weakref.ref[Record]:
        record = Record()
        current.set(record)
        loops.watch()
        return weakref.ref(record)

    loop = make()
    kept = loop.run_until_complete(serve())
    gc.collect()
    assert kept() is None
    monkeypatch.setattr(loops, "IDLE_AFTER_NS", 0)
    loop.run_until_complete(asyncio.sleep(0.3))
    assert len(taken) == 1
    loop.run_until_complete(serve())  # and again, for the next request
    loop.run_until_complete(asyncio.sleep(0.3))
    assert len(taken) == 2
    loop.run_until_complete(serve())
    loop.close()
    again = make()
    again.run_until_complete(serve())
    again.run_until_complete(asyncio.sleep(0.3))
    assert len(taken) == 3
    again.close()


def test_where_no_loop_runs_or_nobody_wants_it_nothing_is_measured(
    taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loops.watch()
    monkeypatch.setattr(loops, "take", None)

    async def serve() -> None:
        loops.watch()
        await asyncio.sleep(0.2)

    asyncio.run(serve())
    assert taken == []
