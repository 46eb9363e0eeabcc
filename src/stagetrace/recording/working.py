"""The workers of a request besides the code that received it: threads of pools, and blocks of `resume`."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from stagetrace.real_threads import get_ident, sleep
from stagetrace.recording.in_flight import in_flight

if TYPE_CHECKING:
    from stagetrace.recording.record import RequestRecord

# By worker: the ident of a thread, or a weak reference to a greenlet or to the coroutine of a task, which may be
# discarded in the middle of its work. A worker changes its own entry alone.
working: Final[dict[Any, RequestRecord]] = {}


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


def work_here(record: RequestRecord) -> None:
    """Note that the code that runs now, in a task or outside, does the work of a record."""
    record.thread, record.work = get_ident(), task_here()


def take_up(record: RequestRecord, worker: Any) -> RequestRecord | None:
    """Note that a worker works for a request from now on; return what it worked for before, to be restored."""
    key = _key(worker)
    before = working.get(key)
    working[key] = record
    return before


def put_down(worker: Any, before: RequestRecord | None) -> None:
    """Note that a worker works for what it worked for before."""
    if time.time_ns() >= in_flight.ends_at and (record := working.get(_key(worker))) is not None:
        in_flight.look_back(record)
    if before is None:
        working.pop(_key(worker), None)
    else:
        working[_key(worker)] = before


def _key(worker: Any) -> Any:
    if type(worker) is int:
        return worker
    try:
        return ref(worker, _forget)
    except TypeError:  # this class of tasks has no weak references
        return worker


def _forget(gone: Any) -> None:
    working.pop(gone, None)


def workers_of(record: RequestRecord) -> list[Any]:
    """Return the workers of a request, the first one that began first."""
    keys = [key for key, one in working.copy().items() if one is record]
    workers = [key() if type(key) is ref else key for key in keys]
    return [worker for worker in workers if worker is not None]


def threads_of(record: RequestRecord) -> list[int]:
    """Return the threads of pools, by their ident, that do a request's work now, the first one that began first."""
    return [worker for worker in workers_of(record) if type(worker) is int]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=working.clear)
