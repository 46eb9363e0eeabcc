"""anyio: the wait for a worker thread, where FastAPI and Starlette run synchronous handlers, is the stage `queue`."""

from __future__ import annotations

import functools
import weakref
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, switch
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.thread_pools.queue_attributes import wait
from stagetrace.recording.pool_task import PoolTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.recording.record import RequestRecord

WHERE = "stagetrace.instrumentation.thread_pools.anyio"
REASON = "thread_pool"

_nowhere: Callable[[], Any] = lambda: None  # noqa: E731
_default: tuple[Callable[[], Any], Any] = (_nowhere, None)  # an event loop, weakly referenced, and its limiter


def patch_to_thread(module: Any) -> None:
    """Wrap `anyio.to_thread.run_sync`."""
    original = module.run_sync
    default = module.current_default_thread_limiter
    patch = switch(WHERE)

    @functools.wraps(original)
    async def run_sync(func: Any, *args: Any, **kwargs: Any) -> Any:
        record = None if patch.off else current_work()
        task = None if record is None else _begin(record, func, kwargs.get("limiter"), default)
        if task is None:
            return await original(func, *args, **kwargs)
        try:
            return await original(task, *args, **kwargs)
        finally:
            task.end()

    module.run_sync = run_sync


@guarded
def _begin(record: RequestRecord, function: Callable[..., Any], given: Any, default: Callable[[], Any]) -> PoolTask:
    """Return the task of a function in the pool of a limiter, by default the loop's own; it waits from now on."""
    limiter = _default_limiter(default) if given is None else given
    has_room = limiter.available_tokens > 0
    waiters = 0 if has_room else limiter.statistics().tasks_waiting
    attributes = wait(REASON, limiter.total_tokens, waiters)
    return PoolTask(record, function, attributes, limiter if has_room else None)


def _default_limiter(ask: Callable[[], Any]) -> Any:
    """Return the default limiter of this event loop, kept since anyio takes 2 us to find it."""
    global _default  # noqa: PLW0603
    loop = _get_running_loop()
    if loop is None:  # trio
        return ask()
    known, limiter = _default
    if known() is not loop:
        limiter = ask()
        _default = (weakref.ref(loop), limiter)
    return limiter
