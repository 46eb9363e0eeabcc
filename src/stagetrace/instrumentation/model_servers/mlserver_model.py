"""MLServer's models: `predict` of any runtime is the inference, except its decoding and encoding.

Whether a call of `predict` decodes first is known only when it does. So the inference begins tentatively, and a later
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
from stagetrace.instrumentation.models.signature import pickled_as
from stagetrace.recording.current_record import recording
from stagetrace.semconv import INFERENCE, ML_MODEL_NAME, ML_MODEL_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import ModuleType

    from stagetrace.recording.record import RequestRecord

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
    original = vars(base).get("__init_subclass__")

    def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:
        if original is not None:
            original.__func__(cls, **kwargs)
        else:
            super(base, cls).__init_subclass__(**kwargs)
        _wrap(cls)

    base.__init_subclass__ = classmethod(__init_subclass__)


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

    def __init__(self, record: RequestRecord, model: Any) -> None:
        self._record = record
        self._attributes = {ML_MODEL_NAME: model.name}
        if model.version:
            self._attributes[ML_MODEL_VERSION] = model.version
        self._token = _predicting.set(self)
        self._record.begin_tentative(INFERENCE, self._attributes, time.time_ns())

    def decodes(self, *, begins: bool) -> None:
        """Note that decoding begins or ends: the time before was no inference, the time after may be."""
        if begins:
            self._record.cancel_tentative(INFERENCE)
        else:
            self._record.begin_tentative(INFERENCE, self._attributes, time.time_ns())

    def encodes(self, *, begins: bool) -> None:
        """Note that encoding begins: the inference has ended."""
        if begins:
            self._record.end_tentative(INFERENCE)

    def end(self) -> None:
        """End the call."""
        self._record.end_tentative(INFERENCE)
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
    record = recording()
    if record is None or _predicting.get() is not None:  # not recorded, or called by a subclass's `predict`
        return None
    return Predicting(record, model)


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
