"""The standard library: its queues, and the locks of asyncio.

A request puts objects with a future into a queue, for a batcher of the service's own. Each queue has `_put` and `_get`
beneath its locks and waits, so that a `get()` that waits since before the patch comes here, too. Those of the plain
queues are one line each, which is repeated here, since each further call would be felt.
"""

from __future__ import annotations

import functools
import sys
from contextvars import Context
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.batching.consumer import note_put_again, note_taken
from stagetrace.instrumentation.batching.queued_items import MAX_ITEMS, Item, future_in, queued, taken
from stagetrace.instrumentation.locks import patch_locks
from stagetrace.request.current import current, entries, recording

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["patch_locks", "patch_queues"]
OWN = ("queue", "asyncio.queues")
_current = current.get
_known: set[Any] = set()  # our methods that take an object out


def patch_queues(module: ModuleType) -> None:
    """Wrap `_put` and `_get` of the module's queues, asyncio's or those of threads, if they are Python's own."""
    for queue in (module.Queue, module.PriorityQueue, module.LifoQueue):
        if queue.__module__ in OWN:  # gevent puts its own there, in C
            for name, wrapping in (("_put", _putting), ("_get", _getting)):
                if name in vars(queue):
                    setattr(queue, name, wrapping(vars(queue)[name]))


def _putting(original: Any) -> Any:
    @functools.wraps(original)
    def _put(self: Any, item: Any, *args: Any) -> None:
        original(self, item, *args)
        if _current() is not None or entries:
            _note_put(self, item)

    def _put_asyncio(self: Any, item: Any) -> None:
        self._queue.append(item)
        if _current() is not None or entries:
            _note_put(self, item)

    def _put_threads(self: Any, item: Any) -> None:
        self.queue.append(item)
        if (_current() is not None or entries) and not (
            type(item) is tuple and item and type(item[0]) is Context  # a call for a thread of anyio: see `future_in`
        ):
            _note_put(self, item)

    return _plain(original, {("_queue", "append"): _put_asyncio, ("queue", "append"): _put_threads}) or _put


def _getting(original: Any) -> Any:
    @functools.wraps(original)
    def _get(self: Any, *args: Any) -> Any:
        item = original(self, *args)
        if queued:
            _note_get(item)
        return item

    def _get_asyncio(self: Any) -> Any:
        item = self._queue.popleft()
        if queued:
            _note_get(item)
        return item

    def _get_threads(self: Any) -> Any:
        item = self.queue.popleft()
        if queued:
            _note_get(item)
        return item

    getting = _plain(original, {("_queue", "popleft"): _get_asyncio, ("queue", "popleft"): _get_threads}) or _get
    _known.add(getting)
    return getting


def _plain(original: Any, like: dict[tuple[str, ...], Any]) -> Any:
    """Return the function of `like` that does what Python's own method does, recognised by its names; else None."""
    is_own = getattr(original, "__module__", None) in OWN and hasattr(original, "__code__")
    plain = like.get(original.__code__.co_names) if is_own else None
    return None if plain is None else functools.wraps(original)(plain)


@guarded
def _note_put(queue: Any, thing: Any) -> None:
    request = recording()
    if request is None or request.is_batch:
        if taken:
            note_put_again(thing)
        return
    future = future_in(thing) if len(queued) < MAX_ITEMS and type(queue)._get in _known else None
    if future is None or _is_known(thing, future):
        return
    if hasattr(future, "get_loop"):
        loop = sys.modules["asyncio"]._get_running_loop()
        if loop is not None and future.get_loop() is loop:
            item = Item(request, thing, future)
            future.add_done_callback(item.end)  # the first callback: the request goes on by a later one
            loop.call_soon(item.check_awaited)
    else:
        _await_result(request, thing, future)


def _is_known(thing: Any, future: Any) -> bool:
    """Return whether the object is in a queue already: then it is unclear which request waits for it."""
    known = queued.get(id(thing))
    if known is None:
        return False
    known.forget()
    return known.waits_for(future)  # if not, the object was taken unseen, and this one has its id


def _await_result(request: Any, thing: Any, future: Any) -> None:
    """Note when the request waits for a future of threads, as for one of a pool."""
    import concurrent.futures.thread  # noqa: F401 -- its patch wraps `result`

    from stagetrace.instrumentation.batching.queued_items import JOB, patch_asyncio

    if JOB not in vars(future):
        patch_asyncio()
        vars(future)[JOB] = item = Item(request, thing, future)
        future.add_done_callback(item.end)


@guarded
def _note_get(thing: Any) -> None:
    note_taken(thing)
