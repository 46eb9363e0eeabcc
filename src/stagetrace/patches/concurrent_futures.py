"""`ThreadPoolExecutor`: work that a request submits belongs to the request, and so does its wait for a thread.

In the pool's thread two context variables are set during the call, the current request and OpenTelemetry's context; the
service's own are as they would be untraced. The wait for a thread is the stage `queue` while the request waits for the
future: in `result()`, `wait()` and the like, or as a coroutine. What the request computes meanwhile is its own time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report
from stagetrace.instrumentation.base import after, patching
from stagetrace.instrumentation.batching.consumer import carry_into, current_work, note_submitted
from stagetrace.instrumentation.batching.queued_items import JOB, patch_asyncio, taken
from stagetrace.request.context import here
from stagetrace.request.current import current, entries, recording
from stagetrace.request.working import put_down, take_up, this_worker, wait
from stagetrace.semconv import QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stagetrace.request.request import Request

WHERE = "stagetrace.patches.concurrent_futures"
REASON = "executor"


class Job:
    """A function that a request submitted, as the pool's thread calls it; once called, it refers to no request."""

    __slots__ = ("_attributes", "_context", "_function", "_open", "_threads", "is_taken", "request")

    def __init__(self, function: Any, request: Request, pool: Any) -> None:
        self._function = function
        self.request: Request | None = request
        self._context: Any = here.get_current()
        self._threads = getattr(pool, "_threads", ())  # not the pool, which ends when nobody refers to it
        work = getattr(pool, "_work_queue", None)
        self._attributes = wait(REASON, getattr(pool, "_max_workers", None), work.qsize() if work is not None else 0)
        self._open: list[Request] = []  # with an open wait, which the thread that takes it out ends
        self.is_taken = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, as a part of the request if that still runs."""
        function, request, context = self._function, self.request, self._context
        self._function = self.request = self._context = None
        self.is_taken = True
        tokens = worker = before = None
        try:
            self._leave()
            tokens = _enter(request, context)
            if request is not None and not request.closed:
                worker = this_worker()
                before = take_up(request, worker)
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(WHERE, error)
        del request, context
        try:
            return function(*args, **kwargs)
        finally:
            if worker is not None:
                _put_down(worker, before)
            if tokens is not None:
                _exit(*tokens)

    def begin_wait(self) -> None:
        """Note that the request waits, unless a thread has begun the work."""
        request = self.request
        if self.is_taken or request is None or self._open:
            return
        request.pools = (*request.pools, self._threads)
        request.enter(QUEUE, self._attributes)
        self._open.append(request)
        if self.is_taken:  # meanwhile
            self._leave()

    def _leave(self) -> None:
        if self._open:
            try:
                request = self._open.pop()
            except IndexError:  # another thread ends the wait
                return
            request.leave(QUEUE)
            request.leave_pool(self._threads)

    @guarded_end
    def end_wait(self, _future: Any = None) -> None:
        """Note that the request waits no longer."""
        self._leave()

    def wait_for(self, awaited: Any, future: Any) -> None:
        """Begin the wait if asyncio's future `awaited`, which stands for `future`, is awaited by now."""
        try:
            if (
                not self.is_taken and len(awaited._callbacks or ()) > 1
            ):  # the first callback is that of the chain itself
                self.begin_wait()
                future.add_done_callback(self.end_wait)  # it may be cancelled before a thread begins the work
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)


def _enter(request: Request | None, context: Any) -> tuple[Any, Any]:
    entered = current.set(None if request is None or request.closed else request)
    try:
        return entered, here.attach(context)
    except Exception:
        current.reset(entered)
        raise


_put_down = guarded_end(put_down)


@guarded_end
def _exit(entered: Any, attached: Any) -> None:
    current.reset(entered)
    here.detach(attached)


def _submitting(original: Any) -> Any:
    @functools.wraps(original)
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        # Servers with threads submit each request from outside one: then nothing more is asked.
        may_be_ours = current.get() is not None or entries or taken
        request = current_work() if may_be_ours else None
        job = None if request is None else _job(fn, request, self)
        if job is None:
            return original(self, fn, *args, **kwargs)
        future = original(self, job, *args, **kwargs)
        future.__dict__[JOB] = job
        if taken:
            note_submitted(request, future)
        return future

    return submit


@guarded
def _job(function: Any, request: Request, pool: Any) -> Job | None:
    # A subclass from Python 3.14 on, which pickles the function: context cannot be carried over.
    if any(cls.__name__ == "InterpreterPoolExecutor" for cls in type(pool).__mro__):
        return None
    patch_asyncio()
    if taken:
        carry_into(function, request)
    return Job(function, request, pool)


def _waiting(original: Any) -> Any:
    @functools.wraps(original)
    def wait(self: Any, timeout: Any = None) -> Any:
        job = self.__dict__.get(JOB)
        if job is None or job.is_taken:
            return original(self, timeout)
        return _with_wait([job], original, self, timeout)

    return wait


def _with_wait(jobs: Iterable[Job], original: Any, *args: Any) -> Any:
    """Call `original`, which waits for jobs that may not have begun yet."""
    _begin_waits(jobs)
    try:
        return original(*args)
    finally:
        for job in jobs:
            job.end_wait()


@guarded
def _begin_waits(jobs: Iterable[Job]) -> None:
    request = recording()
    for job in jobs:
        if request is not None and job.request is request:
            job.begin_wait()


def _wait_by(waiter: Any, futures: Any, _return_when: Any) -> None:
    jobs = [job for future in futures if (job := future.__dict__.get(JOB)) is not None and not job.is_taken]
    if jobs:
        waiter.event = _Event(waiter.event, jobs)


class _Event:
    """The event of a waiter for several futures, some of which may be a request's."""

    def __init__(self, event: Any, jobs: list[Job]) -> None:
        self._event = event
        self._jobs = jobs

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the event; meanwhile the requests wait for the threads of their jobs."""
        return _with_wait(self._jobs, self._event.wait, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)


patch_thread = patching(
    {
        "ThreadPoolExecutor.submit": _submitting,
        "_base.Future.result": _waiting,
        "_base.Future.exception": _waiting,
        # wait() and as_completed() wait by this, however they were imported.
        "_base._create_and_install_waiters": after(_wait_by),
    }
)
