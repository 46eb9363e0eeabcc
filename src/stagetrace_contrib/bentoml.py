"""BentoML's adaptive batching: each request's wait for its batch, and the one inference of all requests in the batch.

Each process of a service has a dispatcher for each batchable method. A request becomes a job there. A task, which the
first request starts, collects jobs, and starts a task for each batch.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.batching.queued_items import BATCH_WAIT, enter, leave, leave_request
from stagetrace.request.current import current, recording
from stagetrace.semconv import INFERENCE, ML_MODEL_NAME, QUEUE, QUEUE_REASON

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.request.record import RequestRecord
    from stagetrace.request.worker import Batch

METHOD = "_stagetrace_method"  # on a dispatcher: its Method


class Method(NamedTuple):
    """The method for which a dispatcher makes batches."""

    service: str
    in_thread: bool


class Wait:
    """The wait of a request for its batch."""

    def __init__(self, record: RequestRecord) -> None:
        from stagetrace.request.remote_stages import hand_on

        self.since = time.time_ns()
        self.record = record
        self.key = hand_on(record, BATCH_WAIT, self.since)
        self.is_over = False


_beginning: ContextVar[Wait | None] = ContextVar(
    "stagetrace.bentoml", default=None
)  # the wait of the request whose job is made now
_waits: WeakKeyDictionary[Any, Wait] = WeakKeyDictionary()  # by the future of the job


def patch_app(module: ModuleType) -> None:
    """Wrap the factory that makes the dispatchers of an application."""
    factory = module.ServiceAppFactory
    init, to_thread = factory.__init__, factory._to_thread
    factory.__init__ = _naming(init)
    factory._to_thread = _in_thread(to_thread)


def patch_dispatcher(module: ModuleType) -> None:
    """Wrap the dispatcher and its jobs."""
    dispatcher, job = module.CorkDispatcher, module.Job
    inbound, outbound = dispatcher.inbound_call, dispatcher.outbound_call
    controller, split, init = dispatcher.controller, dispatcher.split_job, job.__init__
    dispatcher.inbound_call = _waiting(inbound)
    dispatcher.outbound_call = _batched(outbound)
    dispatcher.controller = _in_no_request(controller)
    dispatcher.split_job = _splitting(split)
    job.__init__ = _noting(init)


def _naming(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _name(self)

    return __init__


@guarded
def _name(factory: Any) -> None:
    """Note on each dispatcher which method it calls, and whether in a thread."""
    for name, dispatcher in factory.dispatchers.items():
        function = inspect.unwrap(factory.service.apis[name].func)
        setattr(dispatcher, METHOD, Method(factory.service.name, not inspect.iscoroutinefunction(function)))


def _in_thread(original: Any) -> Any:
    @functools.wraps(original)
    async def _to_thread(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        return await original(self, _inferring(func) or func, *args, **kwargs)

    return _to_thread


@guarded
def _inferring(function: Any) -> Any:
    """Return the method of a batch, marked as its inference, which begins when a thread runs it."""
    from stagetrace.request.worker import Batch

    batch = current.get()
    if not isinstance(batch, Batch):
        return None

    @functools.wraps(function)
    def infer(*args: Any, **kwargs: Any) -> Any:
        _begin_inference(batch)
        try:
            return function(*args, **kwargs)
        finally:
            _end_inference(batch)

    return infer


@guarded
def _begin_inference(batch: Batch) -> None:
    batch.enter(INFERENCE)


@guarded_end
def _end_inference(batch: Batch) -> None:
    batch.leave(INFERENCE)


def _waiting(original: Any) -> Any:
    @functools.wraps(original)
    async def inbound_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        wait = _wait()
        token = _beginning.set(wait)
        try:
            return await original(self, *args, **kwargs)
        except asyncio.CancelledError:
            _end_in_vain(wait)
            raise
        finally:
            _beginning.reset(token)

    return inbound_call


@guarded
def _wait() -> Wait | None:
    record = recording()
    return None if record is None else Wait(record)


@guarded_end
def _end_in_vain(wait: Wait | None) -> None:
    """Note that a request waited in vain: BentoML responds with 503, or the request was cancelled."""
    if wait is not None and not wait.is_over:
        wait.record.visit(QUEUE, (wait.since, time.time_ns()), {QUEUE_REASON: BATCH_WAIT})


def _noting(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _note(self)

    return __init__


@guarded
def _note(job: Any) -> None:
    wait = _beginning.get()
    if wait is not None:
        _waits[job.future] = wait


def _splitting(original: Any) -> Any:
    @functools.wraps(original)
    def split_job(self: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
        parts = original(self, job, *args, **kwargs)
        _split(job, parts)
        return parts

    return split_job


@guarded
def _split(job: Any, parts: Any) -> None:
    """Replace the job of a request by its two parts: one completes a batch, the other goes on waiting."""
    wait = _waits.pop(job.future, None)
    if wait is not None:
        now, later = parts
        _waits[now.future] = wait
        _waits[later.future] = Wait(wait.record)


def _in_no_request(original: Any) -> Any:
    """Run the task that collects batches outside the request that started it, the first one."""

    @functools.wraps(original)
    async def controller(self: Any) -> None:
        leave_request()
        await original(self)

    return controller


def _batched(original: Any) -> Any:
    @functools.wraps(original)
    async def outbound_call(self: Any, jobs: Any, *args: Any, **kwargs: Any) -> Any:
        batch = _start_batch(self, jobs)
        inside = enter(batch)
        try:
            return await original(self, jobs, *args, **kwargs)
        finally:  # the requests go on when this task yields to the loop: they have their stages before that
            leave(batch, inside)

    return outbound_call


@guarded
def _start_batch(dispatcher: Any, jobs: Any) -> Batch | None:
    from stagetrace.request.remote_stages import RequestRef
    from stagetrace.request.worker import Batch

    now = time.time_ns()
    requests = []
    for wait in [_waits.pop(job.future, None) for job in jobs]:
        if wait is not None and wait.record.entry is not None:
            wait.is_over = True
            requests.append(RequestRef(wait.key, wait.record.entry))
    if not requests:
        return None
    batch = Batch(requests, len(jobs), BATCH_WAIT, start=now)
    method: Method | None = getattr(dispatcher, METHOD, None)
    if method is not None:
        batch.described = {ML_MODEL_NAME: method.service}
    if method is None or not method.in_thread:
        batch.enter(INFERENCE, None, now)
    return batch
