"""Ray Serve's `@serve.batch`: one inference for all requests of a batch, and the wait of each for it."""

from __future__ import annotations

import functools
import inspect
import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.batching.batch_context import BATCH, enter, leave, leave_request
from stagetrace.instrumentation.model_servers.ray_serve_metadata import require
from stagetrace.recording.current_record import recording
from stagetrace.semconv import INFERENCE, ML_MODEL_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

    from stagetrace.recording.worker import Batch

KEY = "_stagetrace_key"  # on a waiting request of Ray: the key of the recorded request


def patch_batching(module: ModuleType) -> None:
    """Wrap the put into the queue, the task that collects batches, and the coroutine that runs one."""
    queue = module._BatchQueue
    name = "_process_batch_inner" if hasattr(queue, "_process_batch_inner") else "_process_batch"
    put, collect, run = queue.put, queue._process_batches, getattr(queue, name)
    require(run, "self", "func", "batch")
    queue.put = _putting(put)
    queue._process_batches = _in_no_request(collect)
    setattr(queue, name, _running(run))


def _putting(original: Any) -> Any:
    @functools.wraps(original)
    def put(self: Any, *args: Any, **kwargs: Any) -> None:
        _wait(*args, **kwargs)
        original(self, *args, **kwargs)

    return put


@guarded
def _wait(request: Any) -> None:
    record = recording()
    if record is not None:
        from stagetrace.recording.remote_stages import hand_on

        setattr(request, KEY, hand_on(record, BATCH))


def _in_no_request(original: Any) -> Any:
    """Run the task that collects batches outside the request that started it, the first one."""

    @functools.wraps(original)
    async def _process_batches(self: Any, *args: Any, **kwargs: Any) -> None:
        leave_request()
        await original(self, *args, **kwargs)

    return _process_batches


def _running(original: Any) -> Any:
    @functools.wraps(original)
    async def run(self: Any, func: Any, batch: Any) -> None:
        await original(self, _inferring(func, batch) or func, batch)

    return run


@guarded
def _inferring(func: Any, waiting: Any) -> Any:
    """Return the user's function, marked for these requests, of the same kind; None if no request is recorded."""
    if not any(hasattr(one, KEY) for one in waiting):
        return None

    @functools.wraps(func)
    async def whole(*args: Any, **kwargs: Any) -> Any:
        batch = _begin(waiting)
        inside = enter(batch)
        try:
            return await func(*args, **kwargs)
        finally:
            leave(None, inside)
            _end(batch)

    @functools.wraps(func)
    async def parts(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        batch = _begin(waiting)
        results = func(*args, **kwargs)
        try:
            while True:
                part = await _next(results, batch)
                if part is END:
                    return
                yield part
        finally:
            try:
                await results.aclose()
            finally:
                _end(batch)

    return parts if inspect.isasyncgenfunction(func) else whole


END = object()


async def _next(results: Any, batch: Batch | None) -> Any:
    """Return the next part of a stream, made for the batch; END if there is none."""
    inside = enter(batch)
    try:
        return await anext(results, END)
    finally:
        leave(None, inside)


@guarded
def _begin(waiting: Any) -> Batch | None:
    """Begin a batch of the waiting requests that were not cancelled."""
    from stagetrace.recording.remote_stages import find
    from stagetrace.recording.request_ref import RequestRef
    from stagetrace.recording.worker import Batch

    now = time.time_ns()
    taken = [one for one in waiting if not one.future.cancelled()]
    requests = []
    for key in [getattr(one, KEY, "") for one in taken]:
        record = find(key)
        if record is not None and record.entry is not None:
            requests.append(RequestRef(key, record.entry))
    if not requests:
        return None
    batch = Batch(requests, len(taken), BATCH, start=now)
    batch.described = _described() or {}
    batch.report_begin(INFERENCE, now)
    batch.enter(INFERENCE, None, now)
    return batch


@guarded
def _described() -> dict[str, str]:
    from ray import serve

    return {ML_MODEL_NAME: serve.get_replica_context().deployment}


@guarded_end
def _end(batch: Batch | None) -> None:
    if batch is not None:
        batch.leave(INFERENCE)
        batch.finish()
