"""Code that takes items out of a queue, and then works for the batch of what it has taken."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded_end
from stagetrace.instrumentation.batching.queued_items import future_in, parts_of, queued, taken
from stagetrace.request.current import current, recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.batching.queued_items import Item
    from stagetrace.request.request import Request

MAX_GATHERED = 1_024  # items of one consumer
CLEARED_AT = 64  # so many items at a time, those that are done are removed

_collected: ContextVar[tuple[Item, ...]] = ContextVar("stagetrace.collected", default=())  # what this code has taken


def note_taken(thing: Any) -> None:
    """Note that the code that runs now has taken an object, perhaps an item's, out of its queue."""
    item = queued.get(id(thing))
    if item is None or not any(map(item.waits_for, parts_of(thing))):
        return
    del queued[id(thing)]
    item.note_taken()
    task = _task()
    if task is not None and _only_fetches(task):
        context = _context_of_waiter(task)
        if context is not None:
            with suppress(RuntimeError):  # the running code shares it
                context.run(_collect, item)
    elif task is not None or not _is_pool_thread():
        _collect(item)


def _collect(item: Item) -> None:
    items = _collected.get()
    if len(items) % CLEARED_AT == CLEARED_AT - 1:
        items = tuple(one for one in items if one.is_open)
    if len(items) < MAX_GATHERED:
        _collected.set((*items, item))


def note_put_again(thing: Any) -> None:
    """Note that the consumer of an item may have put it into another queue, so that other code will call the model."""
    item = taken.get(id(future_in(thing)))
    if item is not None:
        item.mark_uncertain()


def _task() -> Any:
    asyncio = sys.modules.get("asyncio")
    return asyncio.current_task() if asyncio is not None and asyncio._get_running_loop() is not None else None


def _only_fetches(task: Any) -> bool:
    """Return whether a task does nothing but `Queue.get()`, as `wait_for` makes one up to Python 3.11."""
    return getattr(task.get_coro(), "cr_code", None) is sys.modules["asyncio"].Queue.get.__code__


def _context_of_waiter(future: Any) -> Context | None:
    """Return the context of the task that waits for a future: directly or, as in `wait_for`, for one after it."""
    for callback, context in future._callbacks or ():
        follows = next(iter(getattr(callback, "args", None) or ()), None)
        if hasattr(follows, "_callbacks"):
            return _context_of_waiter(follows)
        if getattr(callback, "__module__", None) is None or hasattr(getattr(callback, "__self__", None), "get_coro"):
            return context  # type: ignore[no-any-return]
    return None


def _is_pool_thread() -> bool:
    """Return whether this thread, in which no task runs, belongs to a pool, and so works for any code."""
    pools = sys.modules.get("concurrent.futures.thread")
    if pools is None:
        return False
    thread: Any = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]
    return getattr(thread, "_target", None) is pools._worker


def current_work() -> Request | None:
    """Return what a model called now works for: the request, or the batch that this code has taken; else None."""
    if taken:
        _begin_batch()
    return recording()


def working_for() -> Request | None:
    """Return what code works for that calls no model: as `current_work`, but no batch begins.

    None where code that has taken items out of a queue still has the context of the request that started it.
    """
    request = recording()
    if taken and request is not None and any(item.has_started(request) for item in _collected.get()):
        return None
    return request


@guarded_end
def _begin_batch() -> None:
    """Make a batch of what this code has taken; from now on the code works for it. Called only if `taken` is not empty.

    A batch goes on until its first future is done, or its consumer has taken more. Where it is unclear what the
    consumer does, as where a part of a batch is left over, its items are uncertain.
    """
    collected = _collected.get()
    if collected:
        items = tuple(item for item in collected if item.is_open)
        _collected.set(items)
        _work_for(items)


def _work_for(items: tuple[Item, ...]) -> None:
    from stagetrace.instrumentation.batching.gathered_batch import GatheredBatch

    task = _task()
    consumer = threading.get_ident() if task is None else id(task)
    request = current.get()
    if isinstance(request, GatheredBatch) and request.is_partly_done:
        request.end_calls()
    open_ = request if request is not None and not request.closed else None
    batch = open_ if isinstance(open_, GatheredBatch) else None
    fresh = [item for item in items if item.batch is None]
    if not fresh:
        if batch is None:  # left over from another batch, or other code has them, too
            for item in items:
                item.mark_uncertain()
        return
    if batch is not None and batch.consumer == consumer and not batch.has_begun and not batch.is_running:
        batch.add(fresh)
        return
    if batch is None and open_ is not None and not any(item.has_started(open_) for item in fresh):
        return  # a request's own code, or code that `stagetrace.batch` marks
    before = [item for item in items if item.batch is not None and item.batch.was_of(consumer)]
    if batch is not None and not batch.is_running:
        batch.end_calls()
        batch.settle()
    current.set(GatheredBatch(fresh, consumer, before))


@guarded_end
def note_submitted(request: Request | None, future: Any) -> None:
    """Note a future that the batch waits for: its consumer may go on to take the next items."""
    if request is not None and request.is_batch:
        getattr(request, "futures", []).append(future)


def carry_into(function: Callable[..., Any], request: Request) -> None:
    """Let a function that `asyncio.to_thread` submits, in a context copied before the batch, work for the batch."""
    context = getattr(getattr(function, "func", None), "__self__", None)
    if request.is_batch and isinstance(context, Context):
        context.run(current.set, request)
