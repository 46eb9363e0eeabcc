"""anyio: the tasks of its task groups, its locks, and the wait for a worker thread.

In task groups Starlette, FastAPI, Litestar and sse-starlette make and send streams: each step of a task that is started
for a request is a step of that request's work, as those of its handler are. In worker threads FastAPI and Starlette run
synchronous handlers: the wait for one is the stage `queue`.
"""

from __future__ import annotations

import functools
import weakref
from asyncio import _get_running_loop
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report, switch
from stagetrace.instrumentation.base import wrap_all
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.batching.queued_items import taken
from stagetrace.instrumentation.locks import patch_locks
from stagetrace.request.current import current, recording
from stagetrace.request.working import PoolTask, wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.request.request import Request


def _following(original: Any) -> Any:
    patch = switch(__name__)

    @functools.wraps(original)
    def start_soon(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        request = None if patch.off else current.get()
        followed = None if request is None or request.closed else _followed(func, request)
        return original(self, followed or func, *args, **kwargs)

    return start_soon


def patch_backend(module: Any) -> None:
    """Wrap `TaskGroup.start_soon` and the locks of a back end, asyncio's or trio's."""
    wrap_all([(module.TaskGroup, "start_soon", _following)])
    patch_locks(module)


@guarded
def _followed(func: Callable[..., Any], request: Request) -> Any:
    return _Followed(func, request)


class _Followed:
    """A function of which the group starts a task: by its module and name, it names that."""

    def __init__(self, func: Callable[..., Any], request: Request) -> None:
        self._func, self._request = func, request
        for name in ("__module__", "__qualname__"):
            if hasattr(func, name):
                setattr(self, name, getattr(func, name))

    def __call__(self, *args: Any) -> Any:
        work = self._func(*args)
        # Of anything else the group says what is wrong with it.
        return self._named_task(work) if type(work) is CoroutineType else work

    def _named_task(self, work: Any) -> Any:
        task: Any = _task_of(_Unawaited(work), self._request)
        task.__name__, task.__qualname__ = work.__name__, work.__qualname__
        return task


class _Unawaited:
    """A coroutine that its task may never have begun with: one that is cancelled at once has nothing to warn of."""

    def __init__(self, work: CoroutineType[Any, Any, Any]) -> None:
        self.work = work

    def __del__(self) -> None:
        self.work.close()


async def _task_of(one: _Unawaited, request: Request) -> Any:
    work: Any = one.work
    if request.step is None:  # else it was begun at once, within a step
        try:
            from stagetrace.request.loop_blockers import stepped

            work = stepped(work, request)
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(__name__, error)
    return await work


# --- worker threads


WHERE = "stagetrace.patches.anyio"
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
        request = None if patch.off else current_work() if taken else recording()
        task = None if request is None else _begin(request, func, kwargs.get("limiter"), default)
        if task is None:
            return await original(func, *args, **kwargs)
        try:
            return await original(task, *args, **kwargs)
        finally:
            task.end()

    module.run_sync = run_sync


@guarded
def _begin(request: Request, function: Callable[..., Any], given: Any, default: Callable[[], Any]) -> PoolTask:
    """Return the task of a function in the pool of a limiter, by default the loop's own; it waits from now on."""
    limiter = _default_limiter(default) if given is None else given
    has_room = limiter.available_tokens > 0
    waiters = 0 if has_room else limiter.statistics().tasks_waiting
    attributes = wait(REASON, limiter.total_tokens, waiters)
    return PoolTask(request, function, attributes, limiter if has_room else None)


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
