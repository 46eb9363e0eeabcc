"""BentoML's adaptive batching: each request's wait for its batch, and the one inference of all requests in the batch.

Each process of a service has a dispatcher for each batchable method. A request becomes a job there. A task, which the
first request starts, collects jobs, and starts a task for each batch.
"""

from __future__ import annotations

import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import after, before, patching, then
from stagetrace.instrumentation.batching import served_batches
from stagetrace.instrumentation.batching.served_batches import (
    BATCH_WAIT,
    leave_request,
    wait_here,
    waiting_for_batch,
    working,
)
from stagetrace.request.current import current
from stagetrace.semconv import INFERENCE, ML_MODEL_NAME

if TYPE_CHECKING:
    from stagetrace.request.request import Request
    from stagetrace.request.worker import Batch

METHOD = "_stagetrace_method"  # on a dispatcher: its Method


class Method(NamedTuple):
    """The method for which a dispatcher makes batches."""

    service: str
    in_thread: bool


class Wait(served_batches.Wait):
    """The wait of a request for its batch, since its job is being made."""

    def __init__(self, request: Request) -> None:
        from stagetrace.request.remote_stages import hand_on

        super().__init__(request)
        self.since = time.time_ns()
        self.key = hand_on(request, BATCH_WAIT, self.since)


_waits: WeakKeyDictionary[Any, Wait] = WeakKeyDictionary()  # by the future of the job


def _name(factory: Any) -> None:
    """Note on each dispatcher which method it calls, and whether in a thread."""
    for name, dispatcher in factory.dispatchers.items():
        function = inspect.unwrap(factory.service.apis[name].func)
        setattr(dispatcher, METHOD, Method(factory.service.name, not inspect.iscoroutinefunction(function)))


def _inferring(factory: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Pass the method of a batch on marked as its inference, which begins when a thread runs it."""
    from stagetrace.request.worker import Batch

    batch = current.get()
    if not isinstance(batch, Batch):
        return None

    @functools.wraps(function)
    def infer(*given: Any, **named: Any) -> Any:
        _begin_inference(batch)
        try:
            return function(*given, **named)
        finally:
            _end_inference(batch)

    return (factory, infer, *args), kwargs


@guarded
def _begin_inference(batch: Batch) -> None:
    batch.enter(INFERENCE)


@guarded_end
def _end_inference(batch: Batch) -> None:
    batch.leave(INFERENCE)


def _note(job: Any) -> None:
    wait = wait_here.get()
    if wait is not None:
        _waits[job.future] = wait


def _split(parts: Any, _dispatcher: Any, job: Any, *_: Any, **__: Any) -> None:
    """Replace the job of a request by its two parts: one completes a batch, the other goes on waiting."""
    wait = _waits.pop(job.future, None)
    if wait is not None:
        now, later = parts
        _waits[now.future] = wait
        _waits[later.future] = Wait(wait.request)


def _batched(original: Any) -> Any:
    @functools.wraps(original)
    async def outbound_call(self: Any, jobs: Any, *args: Any, **kwargs: Any) -> Any:
        with working(_start_batch(self, jobs)):  # the requests go on when this task yields: they have their stages then
            return await original(self, jobs, *args, **kwargs)

    return outbound_call


@guarded
def _start_batch(dispatcher: Any, jobs: Any) -> Batch | None:
    from stagetrace.request.remote_stages import RequestRef
    from stagetrace.request.worker import Batch

    now = time.time_ns()
    requests = []
    for wait in [_waits.pop(job.future, None) for job in jobs]:
        if wait is not None and wait.request.entry is not None:
            wait.is_over = True
            requests.append(RequestRef(wait.key, wait.request.entry))
    if not requests:
        return None
    batch = Batch(requests, len(jobs), BATCH_WAIT, start=now)
    method: Method | None = getattr(dispatcher, METHOD, None)
    if method is not None:
        batch.described = {ML_MODEL_NAME: method.service}
    if method is None or not method.in_thread:
        batch.enter(INFERENCE, None, now)
    return batch


# The factory makes the dispatchers of an application.
patch_app = patching({"ServiceAppFactory.__init__": then(_name), "ServiceAppFactory._to_thread": before(_inferring)})
patch_dispatcher = patching(
    {
        "CorkDispatcher.inbound_call": waiting_for_batch(Wait),
        "CorkDispatcher.outbound_call": _batched,
        "CorkDispatcher.controller": before(leave_request),
        "CorkDispatcher.split_job": after(_split),
        "Job.__init__": then(_note),
    }
)
