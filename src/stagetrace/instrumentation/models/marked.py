"""Wrap a callable so that its outermost call inside a request is the inference; calls inside that are not."""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any, Protocol

from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.instrumentation.base import by_kind
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.batching.queued_items import taken
from stagetrace.instrumentation.models import unrecorded_calls
from stagetrace.instrumentation.models.unrecorded_calls import NEVER
from stagetrace.request.current import current, entries
from stagetrace.request.loop_blockers import LONG_NS, note
from stagetrace.request.steps import each_step, generated, generated_async
from stagetrace.semconv import (
    CPU_BLOCKED_MS,
    CPU_TIME_MS,
    CPU_WAIT_MS,
    INFERENCE,
    ML_COLD_START,
    ML_MODEL_NAME,
    POSTPROCESS,
    PREPARE,
)
from stagetrace.sources.thread_cpu import AT, DIVIDED_NS, UNKNOWN, between, sample, sample_since

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from stagetrace.guard import Switch
    from stagetrace.request.request import Request
    from stagetrace.sources.thread_cpu import CpuSample

    class Timing(Protocol):
        """What times the work of a device for one call; it never raises."""

        def stop(self) -> None:
            """Note that the call returns."""

        def end(self, request: Request, ended: int) -> None:
            """Let the request know of it; `ended` is when the call has returned."""

    Timer = Callable[[dict[str, Any], Request], "Timing | None"]
    Describe = Callable[[Any, tuple[Any, ...], dict[str, Any]], Mapping[str, Any] | None]

MAX_CALLED = 1_024

inside: ContextVar[bool] = ContextVar("stagetrace.inside_model", default=False)
_called: set[str] = set()  # models, in this process
_NO_STEP = nullcontext()


def marked(
    function: Callable[..., Any],
    describe: Describe,
    activity: str = INFERENCE,
    *,
    where: str | None = None,
    is_method: bool = True,
    lazy: bool = False,
    timer: Timer | None = None,
) -> Callable[..., Any]:
    """Return a callable that is the inference (or `activity`) of the current request, where it is the outermost call.

    `describe(instance, args, kwargs)` returns the attributes of the stage; `instance` is None unless the function
    `is_method`. `where` is the patch that faults are counted for, by default the module of `describe`. Of a generator,
    and of the iterator that a `lazy` function returns, each step is the inference, and the work of its caller between
    two steps is not. A model that is called in `POSTPROCESS` is recognised. `timer` times what a device does for the
    call. Outside a recorded request a call costs one read of the context and of the clock, and is counted where
    requests are recorded.
    """
    how = How(describe, activity, switch(where or describe.__module__), is_method=is_method, timer=timer)
    if lazy:
        return _lazy(function, how)
    return by_kind(  # type: ignore[no-any-return]
        function,
        _called_once(function, how),
        _awaited(function, how),
        generated(functools.partial(steps_of, how), function),
        generated_async(functools.partial(steps_of, how, stays=False), function),
    )


class How:
    """How the calls of one callable are recorded."""

    __slots__ = ("activity", "describe", "hides", "is_method", "patch", "timer")

    def __init__(
        self, describe: Describe, activity: str, patch: Switch, *, is_method: bool, timer: Timer | None = None
    ) -> None:
        self.describe = describe
        self.activity = activity
        self.hides = activity != POSTPROCESS  # the models that it calls
        self.patch = patch
        self.is_method = is_method
        self.timer = timer

    def attributes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes of a call."""
        described = (
            self.describe(args[0], args[1:], kwargs) if self.is_method and args else self.describe(None, args, kwargs)
        )
        return attributes_of_call(described)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call as `describe` takes them."""
        return (args[0], args[1:], kwargs) if self.is_method and args else (None, args, kwargs)


def _called_once(function: Callable[..., Any], how: How) -> Callable[..., Any]:
    patch = how.patch

    def call(*args: Any, **kwargs: Any) -> Any:
        request = current.get()
        if request is None and not entries and not taken:  # outside requests, where nothing more is called than must be
            due = unrecorded_calls.due
            if due is not NEVER and due < time_ns():
                return beside(function, how, args, kwargs)
            return function(*args, **kwargs)
        if taken or request is None or request.closed or not request.bound:
            request = current_work()  # the rare case
            if request is None:
                return beside(function, how, args, kwargs)
        if patch.off or inside.get():
            return function(*args, **kwargs)
        token = inside.set(how.hides)
        visit = Visit(how, request, args, kwargs)
        try:
            return function(*args, **kwargs)
        finally:
            inside.reset(token)
            visit.end()

    return call


def beside(function: Callable[..., Any], how: How, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function in no request: the outermost call of a model is counted, where requests are recorded."""
    unrecorded(args)
    is_outermost = unrecorded_calls.is_counting and how.activity == INFERENCE and not how.patch.off and not inside.get()
    if not is_outermost or not unrecorded_calls.count(how.describe, *how.arguments(args, kwargs)):
        return function(*args, **kwargs)
    token = inside.set(True)
    try:
        return function(*args, **kwargs)
    finally:
        inside.reset(token)


def training(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that trains: the models that it calls are no inference."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        token = inside.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            inside.reset(token)

    return call


def _awaited(function: Callable[..., Any], how: How) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        request = None if how.patch.off or inside.get() else current_work() or unrecorded(args)
        if request is None:
            return await function(*args, **kwargs)
        token = inside.set(how.hides)
        visit = Visit(how, request, args, kwargs, stays=False)
        try:
            return await function(*args, **kwargs)
        finally:
            with suppress(ValueError):  # closed by a garbage collector, in another context
                inside.reset(token)
            visit.end()

    return call


def _lazy(function: Callable[..., Any], how: How) -> Callable[..., Any]:
    """Let the call and each step of the iterator that it returns be the inference."""
    once = _called_once(function, how)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = once(*args, **kwargs)
        if not hasattr(result, "__next__"):
            return result
        return each_step(steps_of(how, args, kwargs), result)

    return call


def steps_of(how: How, args: tuple[Any, ...], kwargs: dict[str, Any], *, stays: bool = True) -> Any:
    """Return what makes the stage of each step of a call that runs as its caller iterates."""
    attributes: list[dict[str, Any]] = []  # of the call, once they are known

    def step() -> AbstractContextManager[Any]:
        request = None if how.patch.off or inside.get() else current_work()
        return (
            _NO_STEP
            if request is None
            else _Step(how, partial(Visit, how, request, args, kwargs, attributes, stays=stays))
        )

    return step


class _Step:
    """One step of a call: the inference while it runs."""

    __slots__ = ("_begin", "_how", "_token", "_visit")

    def __init__(self, how: How, begin: Callable[[], Visit]) -> None:
        self._how = how
        self._begin = begin

    def __enter__(self) -> None:
        self._token = inside.set(self._how.hides)
        self._visit = self._begin()

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):  # closed by a garbage collector, in another context
            inside.reset(self._token)
        self._visit.end()


class Visit:
    """The inference of a request, from the begin of a call, or of a step of it, to its end. Never raises."""

    __slots__ = ("_attributes", "_began", "_first", "_how", "_request", "_stays", "_timing")

    def __init__(
        self,
        how: How,
        request: Request,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        of_call: list[dict[str, Any]] | None = None,
        *,
        stays: bool = True,
    ) -> None:
        """Begin it; `of_call` holds the attributes of the call where an earlier step has left them.

        `stays`: on its thread, whose CPU time is then the call's.
        """
        self._how = how
        self._request: Request | None = request
        self._stays = stays
        self._first: CpuSample | None = None
        self._attributes: dict[str, Any] | None = None
        self._timing: Timing | None = None
        began = time_ns()
        if stays:
            self._first = first = sample(began)
            if first is not None and first[AT] > began:
                began = first[AT]  # the stage begins with the CPU sample: the thread may pause between two readings
        self._began = began
        try:
            if of_call:
                attributes = {**of_call[0]}
            else:
                attributes = how.attributes(args, kwargs)
                if of_call is not None:
                    of_call.append({name: value for name, value in attributes.items() if name != ML_COLD_START})
            self._attributes = attributes
            if how.timer is not None:
                self._timing = how.timer(attributes, request)
            request.enter(how.activity, attributes if how.hides else None, began)
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(how.patch.name, error)
            self._request = None

    def end(self) -> None:
        """End it."""
        request, how, timing = self._request, self._how, self._timing
        if request is None:
            return
        try:
            if timing is not None:
                timing.stop()
            began, ended = self._began, time_ns()
            if ended - began >= DIVIDED_NS and self._stays:
                ended = divide(request, self._first, self._attributes) or ended
                if ended - began >= LONG_NS:
                    note_blocking(began, ended, request, None if how.activity == PREPARE else self._attributes)
            request.leave(how.activity, ended)
            if timing is not None:
                timing.end(request, ended)
        except Exception as error:  # noqa: BLE001
            report(how.patch.name, error)


def is_outermost(model: Any) -> bool:
    """Return whether a model that is called now would be the outermost of a recorded request."""
    return not inside.get() and (current_work() or unrecorded((model,))) is not None


def unrecorded(args: tuple[Any, ...]) -> Request | None:
    """Return None for a model that is called outside a recorded request; log that if it is time."""
    if not unrecorded_calls.is_counting and unrecorded_calls.due < time_ns():
        unrecorded_calls.check(args[0] if args else None)
    return None


def attributes_of_call(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of the attributes for one call: more may be added until the request ends."""
    attributes = dict(described) if described else {}
    name = attributes.get(ML_MODEL_NAME)
    if name is not None and name not in _called and len(_called) < MAX_CALLED:
        _called.add(name)
        unrecorded_calls.begin_counting()
        attributes[ML_COLD_START] = True
    return attributes


@guarded
def divide(request: Request, first: CpuSample | None, attributes: dict[str, Any] | None) -> int | None:
    """Record how the thread's time during a call divides; return when it ended (ns), or None if that is unknown."""
    last = sample_since(first) if first is not None else None
    share = between(first, last) if first is not None and last is not None else None
    if first is None or last is None or share is None or attributes is None:
        return None
    request.keep("cpu_samples", (first, last))
    attributes[CPU_TIME_MS] = share.computed / 1e6
    if share.waited != UNKNOWN:
        attributes[CPU_WAIT_MS] = share.waited / 1e6
        attributes[CPU_BLOCKED_MS] = share.blocked / 1e6
    return last[AT]


def note_blocking(began: int, ended: int, request: Request, attributes: Mapping[str, Any] | None) -> None:
    """Note that the call has blocked an event loop, if it was made in one."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        note(began, ended, request, (attributes or {}).get(ML_MODEL_NAME, ""))


# --- calls that end elsewhere, in a callback on another thread, or as somebody waits for them


class Begun:
    """An inference of a request, from the call that began it."""

    __slots__ = ("end", "request")

    def __init__(self, request: Request, described: Mapping[str, Any]) -> None:
        self.request = request

        @guarded_end
        def end() -> None:
            request.leave(INFERENCE)

        self.end: Callable[[], None] = end
        """End it, once; never raises."""
        request.enter(INFERENCE, attributes_of_call(described))


def asking() -> Request | None:
    """Return the request whose inference a call would be that is made now; None outside, and inside another model."""
    return None if inside.get() else current_work()
