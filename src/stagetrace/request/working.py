"""The workers of a request besides the code that received it: threads of pools, and blocks of `resume`."""

from __future__ import annotations

import os
import sys
import time
from functools import lru_cache
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from stagetrace.guard import report
from stagetrace.request.in_flight import in_flight
from stagetrace.request.serving_process import crowded_waits
from stagetrace.semconv import QUEUE, QUEUE_POOL_SIZE, QUEUE_REASON, QUEUE_WAITERS
from stagetrace.sources import thread_cpu
from stagetrace.sources.stacks import WORKER_THREADS
from stagetrace.sources.thread_cpu import AT, DIVIDED_NS, sample
from stagetrace.system.threads import get_ident, sleep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.request.request import Request
    from stagetrace.sources.thread_cpu import CpuSample

# By worker: the ident of a thread, or a weak reference to a greenlet or to the coroutine of a task, which may be
# discarded in the middle of its work. A worker changes its own entry alone.
working: Final[dict[Any, Request]] = {}


def this_worker() -> Any:
    """Return the worker that runs this code, outside of tasks."""
    return get_ident() if time.sleep is sleep else current_greenlet() or get_ident()


def worker_here() -> Any:
    """Return the worker that runs this code, in a task or outside."""
    return task_here() or this_worker()


def task_here() -> Any:
    """Return the coroutine of the asyncio task that runs this code; None outside of tasks."""
    asyncio: Any = sys.modules.get("asyncio")
    task: Any = None if asyncio is None or asyncio._get_running_loop() is None else asyncio.current_task()  # noqa: SLF001
    return task.get_coro() if hasattr(task, "get_coro") else None


def current_greenlet() -> Any:
    """Return the greenlet that runs this code; None where nothing here uses greenlets."""
    getcurrent = getattr(sys.modules.get("greenlet"), "getcurrent", None)
    return None if getcurrent is None else getcurrent()


def work_here(request: Request) -> None:
    """Note that the code that runs now, in a task or outside, does the work of a request."""
    request.thread, request.work = get_ident(), task_here()


def take_up(request: Request, worker: Any) -> Request | None:
    """Note that a worker works for a request from now on; return what it worked for before, to be restored."""
    key = worker if type(worker) is int else _key(worker)
    before = working.get(key)
    working[key] = request
    return before


def put_down(worker: Any, before: Request | None) -> None:
    """Note that a worker works for what it worked for before."""
    key = worker if type(worker) is int else _key(worker)
    if time.time_ns() >= in_flight.ends_at and (request := working.get(key)) is not None:
        in_flight.look_back(request)
    if before is None:
        working.pop(key, None)
    else:
        working[key] = before


def _key(worker: Any) -> Any:
    try:
        return ref(worker, _forget)
    except TypeError:  # this class of tasks has no weak references
        return worker


def _forget(gone: Any) -> None:
    working.pop(gone, None)


def workers_of(request: Request) -> list[Any]:
    """Return the workers of a request, the first one that began first."""
    keys = [key for key, one in working.copy().items() if one is request]
    workers = [key() if type(key) is ref else key for key in keys]
    return [worker for worker in workers if worker is not None]


def threads_of(request: Request) -> list[int]:
    """Return the threads of pools, by their ident, that do a request's work now, the first one that began first."""
    return [worker for worker in workers_of(request) if type(worker) is int]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=working.clear)


# --- Work of a request in a thread of a pool: the wait for the thread, and how the thread's time divides.

WHERE = "stagetrace.patches.anyio"  # the patch that is switched off where this fails


class PoolTask:
    """What a request gives to a pool, as the pool's thread calls it. Begins to wait as it is made."""

    __slots__ = ("_asked", "_ended", "_function", "_request", "_roomy", "_waits")

    def __init__(
        self, request: Request, function: Callable[..., Any], attributes: Mapping[str, Any], roomy: Any
    ) -> None:
        """Wait with these attributes; `roomy` is the pool's limiter if it has a token left, else None."""
        self._request = request
        self._function = function
        self._roomy = roomy
        self._ended = 0
        self._waits = [QUEUE]  # removed by what ends the wait: the thread, or the loop if no thread took the task up
        self._asked = time_ns()
        if roomy is None:
            request.pools = (*request.pools, WORKER_THREADS)
        request.enter(QUEUE, attributes, self._asked)

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        first = worker = before = None
        try:
            now = time_ns()
            self._leave(now)
            is_short = now - self._asked < DIVIDED_NS
            first = sample(now) if is_short else wake_up(self._request, self._asked, now, self._roomy)
            worker = this_worker()
            before = take_up(self._request, worker)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report(WHERE, error)
        try:
            return self._function(*args)
        finally:
            try:
                if worker is not None:
                    put_down(worker, before)
                self._ended = now = time_ns()
                thread_cpu.become_idle(now)
                if first is not None and now - first[AT] >= DIVIDED_NS:
                    self._request.divide(first)
            except Exception as error:  # noqa: BLE001
                report(WHERE, error)

    def _leave(self, now: int) -> None:
        if self._waits:
            try:
                waited = self._waits.pop()
            except IndexError:  # the other thread has ended the wait
                return
            self._request.leave(waited, now)
            if self._roomy is None:
                self._request.leave_pool(WORKER_THREADS)

    def end(self) -> None:
        """Take the request back to the event loop. Never raises."""
        try:
            now = time_ns()
            if self._waits:
                self._leave(now)
            if self._ended and now - self._ended >= DIVIDED_NS:
                self._request.add_wakeup(self._ended, now)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)


def wake_up(request: Request, asked: int, now: int, roomy: Any) -> CpuSample | None:
    """Return the CPU sample of the thread; note for how long it was free and could not run.

    `roomy` is the pool's limiter if it had a token left when the thread was asked for.
    """
    previous = thread_cpu.last_sample()
    first = sample()
    if first is not None:
        had_room = roomy is not None and roomy.available_tokens > 0  # else other tasks were queued before it
        request.add_wakeup(
            asked if had_room else max(asked, thread_cpu.idle_since()), now, thread_cpu.waited_for_cpu(previous, first)
        )
    return first


def wait(reason: str, size: Any, waiters: int) -> Mapping[str, Any]:
    """Return the attributes, not to be changed, of a wait that begins now; `size` is None where the pool has none."""
    if waiters:
        crowded_waits[reason] = crowded_waits.get(reason, 0) + 1
    return _wait(reason, size, waiters)


@lru_cache(4_096)
def _wait(reason: str, size: Any, waiters: int) -> Mapping[str, Any]:
    is_known = isinstance(size, int)  # not infinite, not unknown
    return {QUEUE_REASON: reason, **({QUEUE_POOL_SIZE: size, QUEUE_WAITERS: waiters} if is_known else {})}
