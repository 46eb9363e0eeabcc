"""MLServer: its parallel workers, its adaptive batching, and its models.

A message to a worker carries a request reference as one more entry of its `__dict__`: pydantic pickles that, and a
worker without stagetrace ignores it. `predict` of any runtime is the inference, except its decoding and encoding.
Whether a call of it decodes first is known only when it does: so the inference begins tentatively, and a later
`decode` takes it back.
"""

from __future__ import annotations

import functools
import inspect
import time
from contextlib import suppress
from contextvars import ContextVar
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import before, patching, then
from stagetrace.instrumentation.batching.served_batches import BATCH_WAIT, leave_request, requests_of, working
from stagetrace.instrumentation.models.signature import pickled_as
from stagetrace.instrumentation.models.subclasses import for_subclasses
from stagetrace.request.current import recording
from stagetrace.semconv import INFERENCE, ML_MODEL_NAME, ML_MODEL_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import ModuleType

    from stagetrace.request.request import Request
    from stagetrace.request.worker import Batch, Work


REFERENCE = "_stagetrace"  # in a message: the request reference
KEYS = "_stagetrace_keys"  # on a batcher: the keys of the waiting requests, by the batcher's ids
BATCHED = "_stagetrace_batched"  # on a batcher: the ids in the batch that it begins
WORKER = "worker"


# --- parallel workers


def _dispatching(original: Any) -> Any:
    @functools.wraps(original)
    async def dispatch_request(self: Any, request_message: Any, *args: Any, **kwargs: Any) -> Any:
        _add_reference(request_message)
        try:
            return await original(self, request_message, *args, **kwargs)
        finally:
            _note_response(request_message)

    return dispatch_request


@guarded
def _add_reference(message: Any) -> None:
    request = recording()
    if request is not None:
        from stagetrace.request.remote_stages import hand_on_reference

        message.__dict__[REFERENCE] = hand_on_reference(request, WORKER)


@guarded_end
def _note_response(message: Any) -> None:
    named = message.__dict__.get(REFERENCE)
    request = recording() if named else None
    if request is not None and request.remote_stages is not None:
        request.remote_stages.response_arrived(named.partition(" ")[0])


def _running(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any) -> None:
        _prepare()
        original(self)

    return run


@guarded
def _prepare() -> None:
    from stagetrace.runtime.runtime import runtime

    runtime.prepare_now()
    runtime.deliver_at_exit()


def _processing(original: Any) -> Any:
    @functools.wraps(original)
    async def _process_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        work = _take(request)
        with working(work):
            return await _followed(original(self, request, *args, **kwargs), work)

    return _process_request


def _followed(coroutine: Any, work: Work | Batch | None) -> Any:
    if work is None:
        return coroutine
    from stagetrace.request.worker import followed

    return followed(coroutine, work)


@guarded
def _take(message: Any) -> Work | None:
    named = message.__dict__.get(REFERENCE)
    if not named:
        return None
    from stagetrace.request.remote_stages import read_reference
    from stagetrace.request.worker import Work

    request = read_reference(named)
    if request is None:
        return None
    work = Work(request, WORKER)
    work.report_begin(INFERENCE, work.started)
    return work


patch_dispatcher = patching({"Dispatcher.dispatch_request": _dispatching})
patch_worker = patching({"Worker.run": _running, "Worker._process_request": _processing})


# --- adaptive batching


def _wrap_predict(batcher: Any) -> None:
    setattr(batcher, KEYS, {})
    setattr(batcher, BATCHED, ())
    original = batcher._predict_fn

    @functools.wraps(original)
    def predict(request: Any) -> Any:
        return _predict(_start_batch(batcher), original, request)

    batcher._predict_fn = predict


async def _predict(batch: Batch | None, original: Any, request: Any) -> Any:
    with working(batch):
        return await _followed(original(request), batch)


@guarded
def _start_batch(batcher: Any) -> Batch | None:
    """Begin the batch that the batcher has just collected: it calls the inference next."""
    from stagetrace.request.worker import Batch

    now = time.time_ns()
    keys, ids = getattr(batcher, KEYS), getattr(batcher, BATCHED)
    setattr(batcher, BATCHED, ())
    requests = requests_of([keys.pop(one, None) for one in ids])
    return Batch(requests, len(ids), BATCH_WAIT, start=now) if requests else None


def _queueing(original: Any) -> Any:
    @functools.wraps(original)
    async def _queue_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        key = _wait()
        queued = await original(self, *args, **kwargs)
        _note_queued(self, key, queued)
        return queued

    return _queue_request


@guarded
def _wait() -> str | None:
    from stagetrace.request.remote_stages import hand_on

    request = recording()
    return hand_on(request, BATCH_WAIT) if request is not None else None


@guarded
def _note_queued(batcher: Any, key: str | None, queued: Any) -> None:
    """Note the batcher's id of a waiting request; the batcher has not run since the request was queued."""
    if key is not None:
        getattr(batcher, KEYS)[queued[0]] = key


def _collecting(original: Any) -> Any:
    @functools.wraps(original)
    async def _batch_requests(self: Any) -> AsyncIterator[Any]:
        async for batched in original(self):
            _note_batch(self, batched)
            yield batched

    return _batch_requests


@guarded
def _note_batch(batcher: Any, batched: Any) -> None:
    setattr(batcher, BATCHED, tuple(batched.inference_requests))


patch_adaptive = patching(
    {
        "AdaptiveBatcher.__init__": then(_wrap_predict),
        "AdaptiveBatcher._queue_request": _queueing,
        "AdaptiveBatcher._batch_requests": _collecting,
        "AdaptiveBatcher._batcher": before(leave_request),
    }
)


# --- models


F = TypeVar("F")

DECODING = ("decode", "decode_request")
ENCODING = ("encode", "encode_response")
# Classes whose `predict` only calls a model in another process.
PASSES_ON = {"ParallelModel"}

_predicting: ContextVar[Predicting | None] = ContextVar("stagetrace.predicting", default=None)


def patch_decorator(module: ModuleType) -> None:
    """Wrap the codec of `decode_args`, which decodes by a function's annotations."""
    _wrap_codec(module.SignatureCodec)


def patch_model(module: ModuleType) -> None:
    """Wrap `predict` of all subclasses of MLModel to come, and MLModel's own methods that decode and encode."""
    base = module.MLModel
    _wrap_codec(base)
    for_subclasses(base, _wrap, present=False)


def _wrap_codec(cls: type) -> None:
    for names, around in ((DECODING, Predicting.decodes), (ENCODING, Predicting.encodes)):
        for name in names:
            if name in vars(cls):
                setattr(cls, name, _around(vars(cls)[name], around))


@guarded
def _wrap(cls: type) -> None:
    if cls.__name__ in PASSES_ON and cls.__module__.startswith("mlserver."):
        return
    predict = vars(cls).get("predict")
    if inspect.isfunction(predict) and inspect.iscoroutinefunction(predict):
        cls.predict = _predicting_once(predict)  # type: ignore[attr-defined]
    stream = vars(cls).get("predict_stream")
    if inspect.isfunction(stream) and inspect.isasyncgenfunction(stream):
        cls.predict_stream = _streaming(stream)  # type: ignore[attr-defined]


class Predicting:
    """One call of a model's `predict`, for the current request or batch."""

    def __init__(self, request: Request, model: Any) -> None:
        self._request = request
        self._attributes = {ML_MODEL_NAME: model.name}
        if model.version:
            self._attributes[ML_MODEL_VERSION] = model.version
        self._token = _predicting.set(self)
        self._request.begin_tentative(INFERENCE, self._attributes, time.time_ns())

    def decodes(self, *, begins: bool) -> None:
        """Note that decoding begins or ends: the time before was no inference, the time after may be."""
        if begins:
            self._request.cancel_tentative(INFERENCE)
        else:
            self._request.begin_tentative(INFERENCE, self._attributes, time.time_ns())

    def encodes(self, *, begins: bool) -> None:
        """Note that encoding begins: the inference has ended."""
        if begins:
            self._request.end_tentative(INFERENCE)

    def end(self) -> None:
        """End the call."""
        self._request.end_tentative(INFERENCE)
        with suppress(ValueError):  # an abandoned stream ends in the context of another task
            _predicting.reset(self._token)


def _as(original: Any) -> Callable[[F], F]:
    """Return a decorator like `functools.wraps`, which leaves no `__wrapped__`.

    MLServer's batching follows `__wrapped__` of a bound method, and expects to find a bound method there. The function
    gets the globals of the original, since it uses none: its annotations are read there, and pickled by value it
    refers to nothing of stagetrace.
    """

    def like(function: F) -> F:
        plain: Any = function
        given: Any = FunctionType(plain.__code__, original.__globals__, closure=plain.__closure__)
        functools.update_wrapper(given, original)
        given.__signature__ = inspect.signature(original)
        if "__wrapped__" in vars(original):
            given.__wrapped__ = original.__wrapped__
        else:
            del given.__wrapped__
        return given  # type: ignore[no-any-return]

    return like


def _predicting_once(original: Any) -> Any:
    begin, end = pickled_as(_begin, bool), pickled_as(_end, bool)

    @_as(original)
    async def predict(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = begin(self)
        try:
            return await original(self, *args, **kwargs)
        finally:
            end(call)

    return predict


def _streaming(original: Any) -> Any:
    begin, end = pickled_as(_begin, bool), pickled_as(_end, bool)

    @_as(original)
    async def predict_stream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        call = begin(self)
        responses = original(self, *args, **kwargs)
        try:
            async for response in responses:
                yield response
        finally:
            try:
                await responses.aclose()  # nothing else closes it if the stream is abandoned
            finally:
                end(call)

    return predict_stream


@guarded
def _begin(model: Any) -> Predicting | None:
    request = recording()
    if request is None or _predicting.get() is not None:  # not recorded, or called by a subclass's `predict`
        return None
    return Predicting(request, model)


@guarded_end
def _end(call: Predicting | None) -> None:
    if call is not None:
        call.end()


def _around(original: Any, note: Any) -> Any:
    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        call = _predicting.get()
        if call is None:
            return original(*args, **kwargs)
        _note(note, call, begins=True)
        try:
            return original(*args, **kwargs)
        finally:
            _note(note, call, begins=False)

    return method


@guarded
def _note(note: Any, call: Predicting, *, begins: bool) -> None:
    note(call, begins=begins)
