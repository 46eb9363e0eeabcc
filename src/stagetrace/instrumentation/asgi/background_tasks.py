"""What a request leaves to the background: no latency of its own, and a span of its own that links to the request."""

from __future__ import annotations

import functools
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.recording import exceptions
from stagetrace.recording.current_record import current

if TYPE_CHECKING:
    from collections.abc import Callable


def task_in_span(original: Any, function_of: Callable[[Any], Any]) -> Any:
    """Return the `__call__` of a task class, in a span named after the function that `function_of` finds in a task."""

    @functools.wraps(original)
    async def __call__(self: Any) -> None:
        # Nothing where opentelemetry's instrumentation makes the same span.
        span = None if hasattr(type(self), "_otel_original_call") else _start(function_of, self)
        if span is None:
            await original(self)
            return
        with span:
            await original(self)

    return __call__


def in_span(function: Any) -> Any:
    """Return a function that is to run in the background, in a span of its own when it is called."""
    if iscoroutinefunction(function):

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            span = _start(_itself, function)
            if span is None:
                return await function(*args, **kwargs)
            with span:
                return await function(*args, **kwargs)

        return run

    @functools.wraps(function)
    def run_now(*args: Any, **kwargs: Any) -> Any:
        span = _start(_itself, function)
        if span is None:
            return function(*args, **kwargs)
        with span:
            return function(*args, **kwargs)

    return run_now


def _itself(function: Any) -> Any:
    return function


@guarded
def _start(function_of: Callable[[Any], Any], task: Any) -> Any:
    """Return a span under that of the request whose task it is, which may run yet; None where there is no such request.

    What the task does is not the request's time.
    """
    request = current.get()
    if request is None or request.entry is None:
        return None
    from opentelemetry.trace import Link, NonRecordingSpan, get_tracer, set_span_in_context

    entry = request.entry
    current.set(None)
    function = function_of(task)
    name = f"BackgroundTask {getattr(function, '__name__', type(function).__name__)}"
    under = set_span_in_context(NonRecordingSpan(entry))
    return exceptions.current(get_tracer("stagetrace").start_span(name, under, links=[Link(entry)]))
