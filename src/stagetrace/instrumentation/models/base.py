"""What model libraries share: the outermost call inside a request is the inference; calls inside that are not."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from contextvars import ContextVar
from time import time_ns
from types import FunctionType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report, switch
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.batching.queued_items import taken
from stagetrace.instrumentation.models import unrecorded_calls
from stagetrace.recording.current_record import current
from stagetrace.recording.loop_blockers import LONG_NS, note
from stagetrace.semconv import (
    CPU_BLOCKED_MS,
    CPU_TIME_MS,
    CPU_WAIT_MS,
    INFERENCE,
    ML_BATCH_SIZE,
    ML_COLD_START,
    ML_FRAMEWORK,
    ML_MODEL_NAME,
    PREPARE,
    TRANSFORM,
)
from stagetrace.sources.thread_cpu import AT, DIVIDED_NS, UNKNOWN, between, sample, sample_since

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.recording.record import RequestRecord
    from stagetrace.sources.thread_cpu import CpuSample

    Describe = Callable[[Any, tuple[Any, ...], dict[str, Any]], Mapping[str, Any] | None]

MAX_DESCRIBED = 1_024
CLASS = "__class__"  # the cell in which `super()` finds a method's class
Parameter = tuple[str, Any, bool]  # its name, its kind, whether it has a default
_ANY: tuple[Parameter, ...] = (
    ("self", inspect.Parameter.POSITIONAL_ONLY, False),
    ("args", inspect.Parameter.VAR_POSITIONAL, False),
    ("kwargs", inspect.Parameter.VAR_KEYWORD, False),
)
# How a parameter of each kind is passed on.
_PASSED = {
    inspect.Parameter.POSITIONAL_ONLY: "{}",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "{}",
    inspect.Parameter.VAR_POSITIONAL: "*{}",
    inspect.Parameter.KEYWORD_ONLY: "{0}={0}",
    inspect.Parameter.VAR_KEYWORD: "**{}",
}

_inside: ContextVar[bool] = ContextVar("stagetrace.inside_model", default=False)
_called: set[str] = set()  # models, in this process


def marked(method: Callable[..., Any], describe: Describe, activity: str = INFERENCE) -> Callable[..., Any]:
    """Return a method that is the inference (or `activity`) of the current request, where it is the outermost call.

    `describe(instance, args, kwargs)` returns the attributes of the stage. Outside a recorded request a call costs one
    read of the context and one of the clock.
    """
    patch = switch(describe.__module__)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        record = current.get()
        if taken or record is None or record.closed or not record.bound:
            record = current_work() or _unrecorded(self)  # the rare case
        if record is None or patch.off or _inside.get():
            return method(self, *args, **kwargs)
        token = _inside.set(True)
        attributes = None
        began = time_ns()
        first = sample(began)
        if first is not None and first[AT] > began:
            began = first[AT]  # the stage begins with the CPU sample: the thread may pause between two readings
        try:
            attributes = _attributes_of_call(describe(self, args, kwargs))
            record.enter(activity, attributes, began)
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(patch.name, error)
            record = None
        try:
            return method(self, *args, **kwargs)
        finally:
            _inside.reset(token)
            if record is not None:
                try:
                    ended = time_ns()
                    if ended - began >= DIVIDED_NS:
                        ended = _divide(record, first, attributes) or ended
                        if ended - began >= LONG_NS:
                            _note_blocking(began, ended, record, None if activity == PREPARE else attributes)
                    record.leave(activity, ended)
                except Exception as error:  # noqa: BLE001
                    report(patch.name, error)

    return call


def with_signature(call: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, the marked `method`, with the parameters of `method`; inside another model it calls that directly.

    A forest calls its hundreds of trees for each prediction, and CPython passes named parameters on in a tenth of the
    time of `*args, **kwargs`. Where cloudpickle or dill pickles it by value, as for a class defined in `__main__`, it
    becomes a function that only calls `method`, and needs no stagetrace.
    """
    parameters, given, names = _ANY, {}, {}
    defaults: tuple[Any, Any] = None, None
    if type(method) is FunctionType:
        names = method.__globals__
        # attrs makes a class with slots anew, and writes the new class into this cell, where `super()` looks.
        given = dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
        if not hasattr(method, "__signature__"):  # else the parameters are others
            found = inspect.signature(method, follow_wrapped=False).parameters.values()
            parameters = tuple((one.name, one.kind, one.default is not one.empty) for one in found)
            defaults = method.__defaults__, method.__kwdefaults__
    chooser = _chooser(parameters, CLASS in given)(_is_inside, method, pickled_as(call, method), None)
    free = zip(chooser.__code__.co_freevars, chooser.__closure__, strict=True)
    cells = tuple(given[CLASS] if name == CLASS else cell for name, cell in free)
    made: Any = functools.wraps(method)(FunctionType(chooser.__code__, names, closure=cells))
    made.__defaults__, made.__kwdefaults__ = defaults
    return made  # type: ignore[no-any-return]


class _PickledAs(functools.partial):  # type: ignore[type-arg]
    """A callable that is pickled as another."""

    pickled: Any

    def __reduce__(self) -> Any:
        return operator.getitem, ((self.pickled,), 0)


def is_outermost(model: Any) -> bool:
    """Return whether a model that is called now would be the outermost of a recorded request."""
    return not _inside.get() and (current_work() or _unrecorded(model)) is not None


def _unrecorded(model: Any) -> RequestRecord | None:
    """Return None for a model that is called outside a recorded request; log that if it is time."""
    if unrecorded_calls.due < time_ns():
        unrecorded_calls.check(model)
    return None


def pickled_as(function: Callable[..., Any], pickled: Any) -> _PickledAs:
    """Return a callable that calls `function`, and that is `pickled` once it was pickled and loaded."""
    made = _PickledAs(function)
    made.pickled = pickled
    return made


_is_inside = pickled_as(_inside.get, bool)  # `bool()` is False: inside no model


@functools.cache
def _chooser(parameters: tuple[Parameter, ...], has_class: bool) -> Any:
    """Return a maker of functions with these parameters that choose between two others; each may refer to its class."""
    no_default = inspect.Parameter.empty
    head = [inspect.Parameter(name, kind, default=None if has else no_default) for name, kind, has in parameters]
    passed = ", ".join(_PASSED[kind].format(name) for name, kind, _ in parameters)
    call = f"_stagetrace_call or {CLASS}" if has_class else "_stagetrace_call"
    chosen = f"(_stagetrace_method if _stagetrace_inside() else {call})"
    function = f"lambda {str(inspect.Signature(head))[1:-1]}: {chosen}({passed})"
    text = f"lambda _stagetrace_inside, _stagetrace_method, _stagetrace_call, {CLASS}: {function}"
    # The code has only parameter names in it, and no globals of this module. A traceback shows this module's name.
    return eval(compile(text, f"<{__name__}>", "eval"), {})  # noqa: S307


def _attributes_of_call(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of the attributes for one call: more may be added until the request ends."""
    attributes = dict(described) if described else {}
    name = attributes.get(ML_MODEL_NAME)
    if name is not None and name not in _called and len(_called) < MAX_DESCRIBED:
        _called.add(name)
        unrecorded_calls.stop_checking()
        attributes[ML_COLD_START] = True
    return attributes


@guarded
def _divide(record: RequestRecord, first: CpuSample | None, attributes: dict[str, Any] | None) -> int | None:
    """Record how the thread's time during a call divides; return when it ended (ns), or None if that is unknown."""
    last = sample_since(first) if first is not None else None
    share = between(first, last) if first is not None and last is not None else None
    if first is None or last is None or share is None or attributes is None:
        return None
    record.divided(first, last)
    attributes[CPU_TIME_MS] = share.computed / 1e6
    if share.waited != UNKNOWN:
        attributes[CPU_WAIT_MS] = share.waited / 1e6
        attributes[CPU_BLOCKED_MS] = share.blocked / 1e6
    return last[AT]


def _note_blocking(began: int, ended: int, record: RequestRecord, attributes: Mapping[str, Any] | None) -> None:
    """Note that the call has blocked an event loop, if it was made in one."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        note(began, ended, record, (attributes or {}).get(ML_MODEL_NAME, ""))


def description(name: str, framework: str, rows: Any, batch: int | None = None) -> Mapping[str, Any]:
    """Return the attributes of one call, not to be changed; `rows` is its first input, of any type.

    `batch` is the number of rows, where the input has neither shape nor length.
    """
    shape = getattr(rows, "shape", None)
    # In onnxruntime's values `shape` is a method, and in dask's arrays it holds no numbers yet.
    if isinstance(shape, tuple) and shape:
        batch = shape[0] if isinstance(shape[0], int) else None
    elif isinstance(rows, list | tuple):
        batch = len(rows)
    return _description(name, framework, batch)


@functools.lru_cache(MAX_DESCRIBED)
def _description(name: str, framework: str, batch: int | None) -> Mapping[str, Any]:
    attributes = {ML_MODEL_NAME: name, ML_FRAMEWORK: framework}
    return attributes if batch is None else {**attributes, ML_BATCH_SIZE: batch}


__all__ = ["INFERENCE", "PREPARE", "TRANSFORM", "description", "is_outermost", "marked", "pickled_as", "with_signature"]
