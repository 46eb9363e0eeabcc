"""Threads, locks and sleep of the operating system, also where gevent or eventlet puts its own in their places.

There a thread is a greenlet: one that waits in C, as gRPC does, or for a disk, keeps every request of the process
waiting. Loaded at activation, before other packages patch anything.
"""

from __future__ import annotations

import _thread
import sys
import time

TYPE_CHECKING = False  # importing `typing` takes longer than all of this package's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_LOOK_EVERY_S = 0.005
_LOOK_AGAIN_AFTER_S = 60.0


def _original(module: ModuleType, name: str) -> Any:
    """Return what a module has, or had before gevent: activated by hand, this may come after it."""
    gevent = sys.modules.get("gevent.monkey")
    return getattr(module, name) if gevent is None else gevent.get_original(module.__name__, name)


start_new_thread = _original(_thread, "start_new_thread")
allocate_lock: Callable[[], _thread.LockType] = _original(_thread, "allocate_lock")
RLock = _original(_thread, "RLock")
local = _original(_thread, "_local")
get_ident: Callable[[], int] = _original(_thread, "get_ident")
sleep: Callable[[float], None] = _original(time, "sleep")


_own = local()


def start(function: Callable[[], Any], name: str) -> None:
    """Run a function in a thread that is not waited for as the process ends."""
    if _thread.start_new_thread is start_new_thread:
        import threading

        threading.Thread(target=function, name=name, daemon=True).start()
    else:
        start_new_thread(_run, (function,))


def _run(function: Callable[[], Any]) -> None:
    _own.is_real = True
    function()


def has_greenlets() -> bool:
    """Return whether the caller is one, or may be."""
    return time.sleep is not sleep and not getattr(_own, "is_real", False)


def aside(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls the function, in a thread of its own where other greenlets would wait for it too."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not has_greenlets():
            return function(*args, **kwargs)
        from contextvars import copy_context

        context, ended = copy_context(), Event()
        results: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(context.run(function, *args, **kwargs))
            except BaseException as error:  # noqa: BLE001 -- it is the caller's
                errors.append(error)
            ended.set()

        start(work, "stagetrace-aside")
        while not ended.wait(_LOOK_AGAIN_AFTER_S):
            pass
        if errors:
            raise errors[0]
        return results[0]

    return call


async def in_thread(function: Callable[[], Any]) -> None:
    """Run a function in a thread of its own, while the event loop, asyncio's or trio's, goes on.

    Not in one of the loop's pool: handlers that hang may have them all.
    """
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        await trio.to_thread.run_sync(function, limiter=trio.CapacityLimiter(1))
        return
    await asyncio.sleep(0)  # what the server has cancelled just now ends before
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1, thread_name_prefix="stagetrace")
    try:
        waiting = loop.run_in_executor(pool, function)
    finally:
        pool.shutdown(wait=False)
    await waiting


def wait(lock: _thread.LockType, seconds: float) -> bool:
    """Return whether the lock was acquired within so many seconds. Other greenlets of the caller's thread go on."""
    if not has_greenlets():
        return lock.acquire(timeout=seconds)
    deadline = time.monotonic() + seconds
    while not (is_ours := lock.acquire(blocking=False)) and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    return is_ours


class Event:
    """As `threading.Event`, for one thread that waits and one that sets it, once."""

    def __init__(self) -> None:
        self._unset = allocate_lock()
        self._unset.acquire()
        self.set = self._unset.release

    def wait(self, timeout: float) -> bool:
        """Return whether it is set, within so many seconds."""
        return wait(self._unset, timeout)


class Condition:
    """As `threading.Condition`."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._waiting: list[_thread.LockType] = []  # guarded by it

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def notify_all(self) -> None:
        """Let all waiting threads look again; the lock is held."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.release()

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Return the predicate's value, as soon as that is true or after so many seconds; the lock is held."""
        deadline = time.monotonic() + timeout
        while not (is_true := predicate()) and (left := deadline - time.monotonic()) > 0:
            mine = allocate_lock()
            mine.acquire()
            self._waiting.append(mine)
            self._lock.release()
            try:
                wait(mine, left)
            finally:
                self._lock.acquire()
                if mine in self._waiting:
                    self._waiting.remove(mine)
        return is_true


# A thread that gives up the interpreter for less has it back before another thread has woken up.
_PAUSE_S = 0.0001


def yield_interpreter() -> None:
    """Pause between two parts of the work on a batch, so that no thread of the service waits for the whole of it."""
    sleep(_PAUSE_S)
