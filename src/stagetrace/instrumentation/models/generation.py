"""Generative models: a call, with each step of the iterator that it may return, is the inference; tokens are counted.

`generating` makes such a call of a method; `Reads` says how one engine's tokens are read. The counts are of
`request/generation.py`.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext, suppress
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from stagetrace import semconv
from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.instrumentation.base import by_kind, runs_later
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.detail import record_detail
from stagetrace.instrumentation.models.marked import (
    How,
    attributes_of_call,
    beside,
    divide,
    inside,
    note_blocking,
    unrecorded,
)
from stagetrace.instrumentation.models.signature import with_signature
from stagetrace.request import generation
from stagetrace.request.generation import Call, active
from stagetrace.request.loop_blockers import LONG_NS
from stagetrace.request.steps import each_step, generated_async
from stagetrace.semconv import CPU_BLOCKED_MS, CPU_TIME_MS, CPU_WAIT_MS, INFERENCE, ML_MODEL_NAME
from stagetrace.sources.thread_cpu import AT, DIVIDED_NS, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from stagetrace.instrumentation.models.base import Library
    from stagetrace.instrumentation.models.marked import Timing
    from stagetrace.request.request import Request
    from stagetrace.sources.thread_cpu import CpuSample

    Arguments = tuple[Any, tuple[Any, ...], dict[str, Any]]  # of a call: the instance, and its arguments

# Phases of a call as engines report them: name of the detail span -> of the attribute with its duration.
PHASES = {"queue": semconv.LATENCY_QUEUE, "prefill": semconv.LATENCY_PREFILL, "decode": semconv.LATENCY_DECODE}
SLACK_NS = 1_000_000  # by which an engine's clock may differ: seconds in a float, clocks read one after the other
_SUMMED = (CPU_TIME_MS, CPU_WAIT_MS, CPU_BLOCKED_MS)
_NO_STEP = nullcontext()


def _nothing(_call: Call, _what: Any, _now: int) -> None:
    pass


def _unread(_call: Call, _arguments: Arguments) -> None:
    pass


class Reads(NamedTuple):
    """How the calls of one method are read. Each function may raise, which counts as a fault of the patch."""

    operation: str  # `gen_ai.operation.name`
    item: Callable[[Call, Any, int], None] = _nothing  # of each item that an iterator yields, and when (ns)
    result: Callable[[Call, Any, int], None] = _nothing  # of what a call returns that is no iterator
    begin: Callable[[Call, Arguments], None] = _unread  # of what it is called with
    end: Callable[[Call, Arguments], None] = _unread  # the same, once what was called has returned
    streams: bool = False  # whether a generator function generates a stream; a function does if it returns a generator


def generating(function: Callable[..., Any], library: Library, reads: Reads) -> Callable[..., Any]:
    """Return a method whose outermost call in a request is an inference that generates.

    It is a function, coroutine function or generator function of either kind; of a generator that it returns each step
    is the inference, too. It keeps its kind and its signature. Outside a recorded request a call costs one read of the
    context and one of the clock.
    """
    how = _How(library, reads)
    outside = How(library.describe, INFERENCE, how.patch, is_method=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        watch = how.begin(args, kwargs)
        if watch is None:
            return beside(function, outside, args, kwargs)
        with watch.step():
            result = function(*args, **kwargs)
            watch.take(result)
        return each_step(watch.step, result) if inspect.isgenerator(result) else result

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        watch = how.begin(args, kwargs)
        if watch is None:
            return await function(*args, **kwargs)
        watch.stays = False
        with watch.step():
            result = await function(*args, **kwargs)
            watch.take(result)
        if inspect.isasyncgen(result):
            return generated_async(lambda *_: watch.step, lambda: result)()
        return result

    def generated(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        watch = how.begin(args, kwargs)
        steps = function(*args, **kwargs)
        return (yield from (steps if watch is None else each_step(watch.step, steps)))

    def step_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], AbstractContextManager[Any]]:
        watch = how.begin(args, kwargs)
        if watch is None:
            return lambda: _NO_STEP
        watch.stays = False
        return watch.step

    made = by_kind(function, call, awaited, generated, generated_async(step_of, function))
    return made if runs_later(function) else with_signature(made, function)


class _How:
    """How the calls of one method are recorded."""

    __slots__ = ("library", "patch", "reads")

    def __init__(self, library: Library, reads: Reads) -> None:
        self.library = library
        self.reads = reads
        self.patch = switch(library.where)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Watch | None:
        """Begin to record a call; None if it is not the outermost one of a request."""
        if self.patch.off or inside.get():
            return None
        request = current_work() or unrecorded(args)
        if request is None:
            return None
        try:
            return _Watch(self, request, (args[0], args[1:], kwargs))
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, for a method
            report(self.patch.name, error)
            return None


class _Watch:
    """One call that is recorded. Nothing here raises but the constructor."""

    __slots__ = ("arguments", "attributes", "call", "how", "request", "stays")

    def __init__(self, how: _How, request: Request, arguments: Arguments) -> None:
        self.how = how
        self.request = request
        self.arguments: Arguments | None = arguments
        self.stays = True  # on its thread, whose CPU time is then the call's
        reads, library = how.reads, how.library
        attributes = attributes_of_call(library.describe(*arguments))
        attributes[semconv.OPERATION_NAME] = reads.operation
        attributes[semconv.PROVIDER_NAME] = library.library or library.framework
        if ML_MODEL_NAME in attributes:
            attributes[semconv.REQUEST_MODEL] = attributes[ML_MODEL_NAME]
        if reads.streams:
            attributes[semconv.REQUEST_STREAM] = True
        self.attributes = attributes
        now = time_ns()
        if reads.operation == semconv.EMBEDDINGS:  # generates nothing
            self.call = Call(attributes, now)
        else:
            self.call = generation.begin(request, attributes, now)
        reads.begin(self.call, arguments)

    def step(self) -> _Step:
        """Return the stage of the call, or of one step of it."""
        return _Step(self)

    def see(self, item: Any) -> None:
        """Take what a step has yielded."""
        try:
            now, call = time_ns(), self.call
            if call.first_chunk is None and semconv.REQUEST_STREAM in self.attributes:
                call.first_chunk = now
            self.how.reads.item(call, item, now)
            if call.placed:
                self._show_phases(now)
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(self.how.patch.name, error)

    @guarded_end
    def take(self, result: Any) -> None:
        """Take what the call has returned, which ends it unless that is yet to be iterated."""
        self._returned()
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            self.attributes[semconv.REQUEST_STREAM] = True
            return
        now = time_ns()
        try:
            self.how.reads.result(self.call, result, now)
            self._show_phases(now)
        finally:
            self.call.end(now)

    def fail(self, error: BaseException, now: int) -> None:
        """Take the exception that a step has raised: an iterator also ends by one."""
        self._returned()
        if isinstance(error, StopIteration | StopAsyncIteration):
            self.call.end(now)
        elif isinstance(error, Exception):
            self.call.end(now, _name_of(error) or type(error).__qualname__)
        else:  # cancelled, closed or interrupted
            self.call.end(now, is_incomplete=True)

    @guarded_end
    def _returned(self) -> None:
        arguments, self.arguments = self.arguments, None
        if arguments is not None:
            self.how.reads.end(self.call, arguments)

    def _show_phases(self, now: int) -> None:
        """Make detail spans of the phases that lie within what has been recorded of the call."""
        placed, self.call.placed = self.call.placed, []
        for name, start, end in placed:
            if self.call.began - SLACK_NS <= start <= end <= now + SLACK_NS:
                record_detail(self.request, name, max(start, self.call.began), min(end, now), {})


class _Step:
    """The inference of a request, while a call or one step of it runs."""

    __slots__ = ("_active", "_began", "_first", "_inside", "_timing", "_watch")

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        self._began = 0
        self._first: CpuSample | None = None
        self._timing: Timing | None = None

    def __enter__(self) -> Callable[[Any], None]:
        watch = self._watch
        self._inside, self._active = inside.set(True), active.set(watch.call)
        self._begin()
        return watch.see

    @guarded
    def _begin(self) -> None:
        began = time_ns()
        if self._watch.stays:
            self._first = first = sample(began)
            if first is not None and first[AT] > began:
                began = first[AT]  # the stage begins with the CPU sample: the thread may pause between two readings
        watch = self._watch
        watch.request.enter(INFERENCE, watch.attributes, began)
        self._began = began
        timer = watch.how.library.timer
        if timer is not None:
            self._timing = timer(watch.attributes, watch.request)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        with suppress(ValueError):  # closed by a garbage collector, in another context
            inside.reset(self._inside)
            active.reset(self._active)
        self._end(error)

    @guarded_end
    def _end(self, error: BaseException | None) -> None:
        watch, began, timing = self._watch, self._began, self._timing
        if timing is not None:
            timing.stop()
        ended = time_ns()
        if error is not None:
            try:
                watch.fail(error, ended)
            except Exception as fault:  # noqa: BLE001 -- the stage ends all the same
                report(watch.how.patch.name, fault)
        if not began:
            return
        if ended - began >= DIVIDED_NS and watch.stays:
            ended = self._divide() or ended
            if ended - began >= LONG_NS:
                note_blocking(began, ended, watch.request, watch.attributes)
        watch.request.leave(INFERENCE, ended)
        if timing is not None:
            timing.end(watch.request, ended)

    def _divide(self) -> int | None:
        """Add how the thread's time divides to that of the steps before; return when this one ended, if known."""
        shares: dict[str, Any] = {}
        ended = divide(self._watch.request, self._first, shares)
        attributes = self._watch.attributes
        for name in _SUMMED:
            if name in shares and not self._watch.request.closed:
                attributes[name] = attributes.get(name, 0.0) + shares[name]
        return ended


@guarded
def _name_of(error: Exception) -> str:
    """Return the name of an exception's class."""
    # With OpenTelemetry: programs that serve nothing import this file, too.
    from stagetrace.request.limits import name_of

    return name_of(type(error))
