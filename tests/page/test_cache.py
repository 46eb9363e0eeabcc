"""Parts are shared: a hundred viewers are one question, who waits takes no thread, and an error is never kept."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import Request

from page.own_loop import run_alone
from stagetrace.backend.refusal import ABANDONED, BUSY, Refused
from stagetrace.errors import StoreError
from stagetrace.page import queries
from stagetrace.page.app import _Endpoints
from stagetrace.page.queries import KEPT_S, Cache, Made, Readers
from stagetrace.page.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

FINE = Made(b"a part", 200, 0.0)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Store:
    """What a part asks: it counts, and where it is `shut` it does not respond before it is opened."""

    def __init__(self, made: Made = FINE, *, shut: bool = False) -> None:
        self.made = made
        self.asked = 0
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        if not shut:
            self.opened.set()

    def __call__(self) -> Made:
        self.asked += 1
        self.entered.release()
        assert self.opened.wait(20)
        return self.made


def viewer(gone: asyncio.Event | None = None) -> Request:
    """Return the request of a browser, which disconnects at the event."""

    async def receive() -> Any:
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def run(work: Callable[[Cache], Coroutine[Any, Any, None]], clock: Clock | None = None, viewers: int = 1000) -> None:
    """Run a test on a cache, and end its threads."""

    async def with_cache() -> None:
        made = Cache(viewers, clock or Clock())
        try:
            await asyncio.wait_for(work(made), 20)
        finally:
            assert made.close(lambda: None, 20)

    run_alone(with_cache())


async def entered(store: Store) -> None:
    assert await asyncio.to_thread(store.entered.acquire, timeout=20)


def test_a_hundred_viewers_are_one_question_and_hinder_no_other() -> None:
    """With three threads: where each viewer held one, the fourth would wait for the first."""
    board, stages = Store(shut=True), Store()

    async def work(shared: Cache) -> None:
        waiting = [asyncio.create_task(shared.get(viewer(), "board", board)) for _ in range(100)]
        await entered(board)
        assert await shared.get(viewer(), "stages", stages) == FINE
        assert not any(one.done() for one in waiting)
        board.opened.set()
        assert await asyncio.gather(*waiting) == [FINE] * 100

    run(work)
    assert (board.asked, stages.asked) == (1, 1)


def test_a_part_is_kept_for_a_while_and_for_as_long_as_it_took() -> None:
    clock = Clock()
    quick, slow = Store(), Store(FINE._replace(took_s=50.0))

    async def work(shared: Cache) -> None:
        for clock.now in (0.0, KEPT_S - 0.1, KEPT_S + 0.1, 49.0, 51.0):
            await shared.get(viewer(), "quick", quick)
            await shared.get(viewer(), "slow", slow)

    run(work, clock)
    assert (quick.asked, slow.asked) == (4, 2)


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_is_shared_by_those_who_wait_and_not_kept(status: int) -> None:
    store = Store(Made(b"no store", status, 0.0), shut=True)

    async def work(shared: Cache) -> None:
        waiting = [asyncio.create_task(shared.get(viewer(), "board", store)) for _ in range(3)]
        await entered(store)
        store.opened.set()
        assert {one.status for one in await asyncio.gather(*waiting)} == {status}
        store.made = FINE
        assert await shared.get(viewer(), "board", store) == FINE

    run(work)
    assert store.asked == 2


def test_beyond_the_limit_a_viewer_is_refused_at_once() -> None:
    store = Store(shut=True)

    async def work(shared: Cache) -> None:
        waiting = [asyncio.create_task(shared.get(viewer(), "board", store)) for _ in range(2)]
        await entered(store)
        with pytest.raises(Refused) as refused:
            await shared.get(viewer(), "board", store)
        assert refused.value.kind is BUSY
        store.opened.set()
        await asyncio.gather(*waiting)
        assert await shared.get(viewer(), "stages", Store()) == FINE

    run(work, viewers=2)


def test_a_part_beyond_the_limit_shows_why() -> None:
    site: Any = None  # of which nothing is asked

    async def work(full: Cache) -> None:
        part = _Endpoints(site, Readers(lambda: site), full).part(VIEWS[0], "names", VIEWS[0].parts["names"])
        request = viewer()
        request.scope.update({"path": "/board/names", "query_string": b"", "headers": [(b"host", b"localhost")]})
        response = await part(request)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert b"parts of pages are being made at this moment" in response.body
        assert b'role="alert"' in response.body

    run(work, viewers=0)


def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    """A thread that asks already goes on: its answer is kept for the next one."""
    running, queued, gone = [Store(shut=True) for _ in range(3)], Store(), asyncio.Event()

    async def work(shared: Cache) -> None:
        waiting = [
            asyncio.create_task(shared.get(viewer(), str(number), store)) for number, store in enumerate(running)
        ]
        for store in running:
            await entered(store)
        leaving = [asyncio.create_task(shared.get(viewer(gone), "queued", queued)) for _ in range(2)]
        await asyncio.sleep(0)
        gone.set()
        for one in leaving:
            with pytest.raises(Refused) as refused:
                await one
            assert refused.value.kind is ABANDONED
        for store in running:
            store.opened.set()
        await asyncio.gather(*waiting)
        assert queued.asked == 0
        assert await shared.get(viewer(), "queued", queued) == FINE  # and it can be asked for again

    run(work)


def test_the_end_interrupts_what_is_asked_and_begins_nothing() -> None:
    store, never = Store(shut=True), Store()
    interrupts: list[int] = []

    def interrupt() -> None:
        interrupts.append(1)
        if len(interrupts) == 3:  # the first ones came between two queries
            store.opened.set()

    async def work() -> Cache:
        made = Cache(100)
        for number in range(3):
            asyncio.ensure_future(made.get(viewer(), str(number), store))  # noqa: RUF006 -- ends with the loop
        for _ in range(3):
            await entered(store)
        asyncio.ensure_future(made.get(viewer(), "never", never))  # noqa: RUF006
        await asyncio.sleep(0)
        return made

    assert run_alone(work()).close(interrupt, 20)
    assert (len(interrupts), never.asked) == (3, 0)
    held = Store(shut=True)

    async def hang() -> Cache:
        made = Cache(100)
        asyncio.ensure_future(made.get(viewer(), "held", held))  # noqa: RUF006
        await entered(held)
        return made

    assert not run_alone(hang()).close(lambda: None, 0.0)  # for what cannot be interrupted nobody waits
    held.opened.set()


def test_bytes_and_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "_MOST", 3)
    monkeypatch.setattr(queries, "_BYTES", 100)  # of which one part may have a quarter
    stores = [Store() for _ in range(4)]
    large, huge = Store(Made(b"x" * 25, 200, 0.0)), Store(Made(b"x" * 26, 200, 0.0))

    async def work(shared: Cache) -> None:
        async def ask(*numbers: int) -> None:
            for number in numbers:
                await shared.get(viewer(), str(number), stores[number])

        await ask(0, 1, 2, 3)  # of which the first is dropped
        await ask(1, 2, 3, 0)
        assert [store.asked for store in stores] == [2, 1, 1, 1]
        for _ in range(2):
            await shared.get(viewer(), "huge", huge)
        await ask(2, 3, 0)
        assert [huge.asked, *(store.asked for store in stores)] == [2, 2, 1, 1, 1]
        monkeypatch.setattr(queries, "_MOST", 100)
        for number in range(4):
            await shared.get(viewer(), f"large {number}", large)
        await ask(2, 3, 0)  # dropped, for want of bytes
        assert [store.asked for store in stores] == [3, 1, 2, 2]
        assert shared._bytes == sum(len(made.body) for _, made in shared._kept.values()) <= 100

    run(work)


class Reader:
    """A reader that counts."""

    def __init__(self) -> None:
        self.closed = self.interrupted = 0

    def close(self) -> None:
        self.closed += 1

    def interrupt(self) -> None:
        self.interrupted += 1


def test_readers_are_kept_after_an_answer_closed_after_an_error_and_interrupted_while_in_use() -> None:
    opened: list[Any] = []

    def open_reader() -> Any:
        opened.append(Reader())
        return opened[-1]

    readers = Readers(open_reader)
    for _ in range(2):
        with readers.one():
            readers.interrupt()
    assert [(one.closed, one.interrupted) for one in opened] == [(0, 2)]
    with pytest.raises(StoreError), readers.one():
        raise StoreError("gone")
    with readers.one():
        pass
    readers.interrupt()
    readers.close()
    assert [(one.closed, one.interrupted) for one in opened] == [(1, 2), (1, 0)]


def test_a_part_is_shown_as_it_was_while_it_is_made_anew() -> None:
    """At once, to whoever takes it so; who wants it as it is waits for what is being made already."""
    clock = Clock()

    async def work(cache: Cache) -> None:
        first, second = Store(Made(b"first", 200, 0.0)), Store(Made(b"second", 200, 0.0), shut=True)
        assert await cache.get(viewer(), "x", first, old=True) == first.made
        clock.now += KEPT_S + 1
        for _ in range(3):
            assert await cache.get(viewer(), "x", second, old=True) == Made(b"first", 200, 0.0, is_old=True)
        anew = asyncio.create_task(cache.get(viewer(), "x", second))
        await entered(second)
        second.opened.set()
        assert await anew == second.made
        assert second.asked == 1
        assert await cache.get(viewer(), "x", second, old=True) == second.made

    run(work, clock)


def test_parts_that_take_long_hold_no_other() -> None:
    async def work(cache: Cache) -> None:
        slow = [Store(shut=True) for _ in range(queries.APART + 2)]
        asked = [
            asyncio.create_task(cache.get(viewer(), f"slow {place}", one, apart=True)) for place, one in enumerate(slow)
        ]
        for one in slow[: queries.APART]:
            await entered(one)
        assert await cache.get(viewer(), "quick", Store()) == FINE
        for one in slow:
            one.opened.set()
        assert await asyncio.gather(*asked) == [FINE] * len(slow)

    run(work)


def test_what_is_no_longer_true_is_forgotten() -> None:
    async def work(cache: Cache) -> None:
        store, other = Store(), Store()
        for key, one in (("board alerts /x", store), ("board now /x", other)):
            await cache.get(viewer(), key, one)
        cache.forget("board alerts ")
        for key, one in (("board alerts /x", store), ("board now /x", other)):
            await cache.get(viewer(), key, one)
        assert (store.asked, other.asked) == (2, 1)

    run(work)
