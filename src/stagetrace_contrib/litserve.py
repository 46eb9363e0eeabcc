"""LitServe: the server's process, and the inference workers, which report the stages of each request and batch to it.

A request in the queue of the workers carries a request reference, in its id. The id is LitServe's own, and opaque to
all: a worker without stagetrace returns it as it is, and the server removes the reference. In a worker only objects of
its process are wrapped, the ends of the queues and the user's LitAPI: so loops that users write are covered, too.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import OrderedDict
from contextlib import ExitStack, aclosing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from uuid import UUID

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import after, before, by_kind, patching, runs_later, wrap_all
from stagetrace.instrumentation.batching.served_batches import working
from stagetrace.instrumentation.servers import hurry
from stagetrace.request.current import current, recording
from stagetrace.request.steps import each_step
from stagetrace.runtime.sigterm_python import delivering_first
from stagetrace.semconv import INFERENCE, ML_MODEL_NAME, QUEUE, QUEUE_REASON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager
    from types import ModuleType

    from stagetrace.request.worker import Batch, Work


MARK = " stagetrace:"  # in an id, between LitServe's own and the reference
REASON = "worker"  # what a request in these queues waits for


def split(uid: str) -> tuple[Any, str]:
    """Return LitServe's own id, and the request reference."""
    text, _, rest = uid.partition(MARK)
    kind, _, named = rest.partition(" ")
    return (UUID(text) if kind == "UUID" else text), named


# --- the server


WRAPPED = "_stagetrace_wrapped"


def _wrap(queue: Any, server: Any, *_: Any, **__: Any) -> None:
    """Wrap methods on two objects: they are pickled without the attributes that are set here.

    And deliver without delay: the main process ends at once on SIGTERM, and where it is a container's first, all do.
    """
    hurry()
    transport = getattr(server, "_transport", None)
    if transport is None:
        return
    if WRAPPED not in vars(transport):
        setattr(transport, WRAPPED, True)
        transport.areceive = after(_without_reference, guarded_end)(transport.areceive)
    if WRAPPED not in vars(queue):
        setattr(queue, WRAPPED, True)
        wrap_all((queue, name, before(_with_reference)) for name in ("put", "put_nowait"))


# It returns the queue of requests, in each process that serves HTTP.
patch_server = patching({"LitServer._get_request_queue": after(_wrap)})


def _with_reference(item: Any, *args: Any, **kwargs: Any) -> Any:
    request = recording()
    if request is None or type(item) is not tuple:
        return None
    from stagetrace.request.remote_stages import hand_on_reference

    consumer, uid, *rest = item
    named = hand_on_reference(request, REASON) if type(uid) in (str, UUID) else None
    if named is None:
        return None
    return ((consumer, f"{uid}{MARK}{type(uid).__name__} {named}", *rest), *args), kwargs


def _without_reference(response: Any, *_: Any, **__: Any) -> Any:
    """Return the response of a worker without stagetrace with LitServe's own id; its waits are unknown."""
    if type(response) is not tuple or type(response[0]) is not str or MARK not in response[0]:
        return None
    uid, named = split(response[0])
    _note_response(named.partition(" ")[0])
    return uid, *response[1:]


@guarded
def _note_response(key: str) -> None:
    from stagetrace.request.remote_stages import find

    request = find(key)
    if request is not None and request.remote_stages is not None:
        request.remote_stages.response_arrived(key)


# --- the workers


BATCH = {QUEUE_REASON: "batch"}
TASK = {QUEUE_REASON: REASON}
MAX_OPEN = 10_000
PROCESSING = ("_process_single_request", "_process_streaming_request")

_worker: Worker | None = None  # of this process


def patch_loop_classes(module: ModuleType) -> None:
    """Wrap the coroutines in which the module's loops serve one request each."""
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            for name in PROCESSING:
                if name in vars(cls):
                    setattr(cls, name, _processing(vars(cls)[name]))


def patch_loops(module: ModuleType) -> None:
    """Wrap the function that a worker process runs."""
    original = module.inference_worker
    signature = inspect.signature(original)

    @functools.wraps(original)
    def inference_worker(*args: Any, **kwargs: Any) -> Any:
        is_async = _begin(signature, args, kwargs)
        try:
            with delivering_first() if is_async else nullcontext():  # its main thread runs an event loop
                return original(*args, **kwargs)
        finally:
            _deliver()

    module.inference_worker = inference_worker  # type: ignore[attr-defined]


@guarded
def _begin(signature: inspect.Signature, args: Any, kwargs: Any) -> bool:
    """Prepare the process, and return whether the user's methods are coroutines."""
    from stagetrace.runtime.runtime import runtime

    global _worker  # noqa: PLW0603
    given = signature.bind(*args, **kwargs).arguments
    runtime.prepare_now()
    runtime.deliver_immediately()  # as in the processes that serve HTTP
    runtime.deliver_at_exit()
    _worker = Worker(given["lit_api"])
    _worker.watch(given["request_queue"], given["transport"])
    return bool(given["lit_api"].enable_async)


@guarded_end
def _deliver() -> None:
    from stagetrace.runtime.runtime import runtime

    runtime.flush_now()


class Worker:
    """The requests that this process has taken, and to which it has not responded yet."""

    def __init__(self, api: Any) -> None:
        self._open: OrderedDict[Any, tuple[Work, Any]] = OrderedDict()  # by LitServe's id, each with its payload
        self._batches = api.max_batch_size > 1
        self._waits = (
            BATCH if self._batches else TASK if api.enable_async else None
        )  # the reason of a request's wait, once it is taken
        self._described = {ML_MODEL_NAME: type(api).__name__}
        self._api = api

    def watch(self, queue: Any, transport: Any) -> None:
        """Wrap the methods that receive and send, and the user's methods in between."""
        queue.get, queue.get_nowait = self._taking(queue.get), self._taking(queue.get_nowait)
        transport.send = before(self._end_request, guarded_end)(transport.send)
        api = self._api
        api.predict = _predicting(api.predict, self)
        if not runs_later(api.decode_request):
            api.decode_request = _working(api.decode_request, self._decoded)
        if not runs_later(api.encode_response):
            api.encode_response = _working(api.encode_response, self._encoded)

    def _taking(self, original: Any) -> Any:
        @functools.wraps(original)
        def get(*args: Any, **kwargs: Any) -> Any:
            with delivering_first():  # LitServe ends its workers by SIGTERM
                item = original(*args, **kwargs)
            return self._take(item) or item

        return get

    @guarded
    def _take(self, item: Any) -> Any:
        """Begin the work for a taken request, if its id has a reference; return the item as LitServe knows it."""
        if type(item) is not tuple or type(item[1]) is not str or MARK not in item[1]:
            return None
        from stagetrace.request.remote_stages import read_reference
        from stagetrace.request.worker import Work

        consumer, text, *rest = item
        uid, named = split(text)
        request = read_reference(named)
        if request is not None:
            work = Work(request, REASON)
            work.described = self._described
            if self._waits is not None:
                work.enter(QUEUE, self._waits, work.started)
            self._open[uid] = work, rest[-1]
            if len(self._open) > MAX_OPEN:  # a loop that does not respond
                self._open.popitem(last=False)
        return consumer, uid, *rest

    def _end_request(self, item: Any, *_args: Any, **_kwargs: Any) -> None:
        """End a request with its last response, before that is sent."""
        uid, (_, status, kind, *_) = item
        if status == "START" or (status == "OK" and getattr(kind, "name", "") == "STREAMING"):
            return
        work, _ = self._open.pop(uid, (None, None))
        if work is not None:
            work.finish()

    @guarded
    def begin_request(self, uid: Any) -> Work | None:
        """Return the work for the request with this id of LitServe's, which a task of its own begins now."""
        work, _ = self._open.get(uid, (None, None))
        if work is not None:
            work.leave(QUEUE)
        return work

    @guarded
    def _decoded(self, payload: Any = None, *_: Any, **__: Any) -> Work | None:
        """Return the work for the request with this payload; the first payload of a batch begins the batch."""
        self._start_batch()
        return next((work for work, sent in self._open.values() if sent is payload), None)

    def _start_batch(self) -> None:
        if self._batches:
            now = time.time_ns()
            for work, _ in self._open.values():
                if not work.is_taken_up:
                    work.is_taken_up = True
                    work.leave(QUEUE, now)

    @guarded
    def _encoded(self, *_: Any, **__: Any) -> Work | None:
        return next(iter(self._open.values()))[0] if len(self._open) == 1 else None

    @guarded
    def _begin(self) -> Work | Batch | None:
        from stagetrace.request.remote_stages import RequestRef, hand_on
        from stagetrace.request.worker import Batch, Work

        now = time.time_ns()
        mine = current.get()
        works = [mine] if isinstance(mine, Work) else [work for work, _ in self._open.values()]
        self._start_batch()
        if not works:
            return None
        for work in works:
            work.report_begin(INFERENCE, now)
        if not self._batches:
            works[0].enter(INFERENCE, None, now)
            return works[0]
        requests = [RequestRef(hand_on(work, at=now), work.request.context) for work in works]
        batch = Batch(requests, len(requests), start=now)
        batch.described = self._described
        batch.enter(INFERENCE, None, now)
        return batch

    @contextmanager
    def inferring(self) -> Iterator[Work | Batch | None]:
        """Let the block be the inference of the request of this task, or of all requests that were taken together."""
        serving = self._begin()
        try:
            yield serving
        finally:
            _end(serving)


def _working(original: Any, work_of: Any) -> Any:
    """Return a function that works for the request that `work_of` finds by its arguments."""

    @functools.wraps(original)
    def work(*args: Any, **kwargs: Any) -> Any:
        with _inside(work_of(*args, **kwargs)):
            return original(*args, **kwargs)

    return work


def _predicting(original: Any, worker: Worker) -> Any:
    """Return the marked `predict`, a function of the same kind."""

    async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with worker.inferring():
            async with aclosing(original(*args, **kwargs)) as parts:  # nothing else closes an abandoned stream
                async for part in parts:
                    yield part

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        with worker.inferring():
            return await original(*args, **kwargs)

    def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with worker.inferring() as serving:
            yield from each_step(lambda: _inside(serving), original(*args, **kwargs))

    def predict(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as inference:
            serving = inference.enter_context(worker.inferring())
            with _inside(serving):
                response = original(*args, **kwargs)
            if inspect.isgenerator(response):
                return _parts(response, serving, inference.pop_all())
            return response

    return by_kind(original, predict, coroutine, generator, stream)


def _parts(responses: Any, serving: Any, inference: ExitStack) -> Iterator[Any]:
    """Pass on the parts of a generator; the inference lasts until its end, also while the parts are used."""
    with inference:
        yield from each_step(lambda: _inside(serving), responses)


def _inside(work: Work | Batch | None) -> AbstractContextManager[None]:
    return working(work if current.get() is not work else None, ends=False)


@guarded_end
def _end(serving: Work | Batch | None) -> None:
    from stagetrace.request.worker import Batch

    if serving is not None:
        serving.leave(INFERENCE)
        if isinstance(serving, Batch):
            serving.finish()


def _followed(coroutine: Any, work: Work) -> Any:
    from stagetrace.request.worker import followed

    return followed(coroutine, work)


def _processing(original: Any) -> Any:
    """Wrap a coroutine that serves one request in its own task."""

    @functools.wraps(original)
    async def process(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        work = _worker.begin_request(request[1]) if _worker is not None else None
        with _inside(work):
            coroutine = original(self, request, *args, **kwargs)
            return await (coroutine if work is None else _followed(coroutine, work))

    return process
