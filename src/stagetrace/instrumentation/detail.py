"""Library calls inside a stage that are no model: a detail span a kind under that stage (`recording/details.py`).

`detailed` wraps what a library calls itself; `record_detail` notes a call that has ended.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import suppress
from contextvars import ContextVar
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report, switch
from stagetrace.instrumentation.batching.consumer import working_for
from stagetrace.recording.current_record import current, entries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.recording.details import Kind
    from stagetrace.recording.record import RequestRecord

# Span names.
TOKENIZE = "tokenize"
IMAGE_DECODE = "image.decode"
IMAGE_TRANSFORM = "image.transform"
FEATURE_FETCH = "feature.fetch"

_inside: ContextVar[tuple[str, ...]] = ContextVar("stagetrace.inside_details", default=())  # names of the open ones


@guarded
def record_detail(
    record: RequestRecord, name: str, start_ns: int, end_ns: int, attributes: Mapping[str, Any] | None = None
) -> None:
    """Record a library call that has ended as a detail of the stage in which it began.

    Times in nanoseconds since the epoch. Calls without `attributes` are one span for each visit to a stage, with their
    number and their summed time; one with attributes is a span of its own.
    """
    from stagetrace.recording.details import details_of

    if record.closed:
        return
    if attributes is None:
        details_of(record).add(record, (name, ""), (start_ns, end_ns, 1, end_ns - start_ns, 0))
    else:
        details_of(record).add_single(name, start_ns, end_ns, attributes)


def detailed(function: Any, name: str, library: str, patch: str) -> Any:
    """Return a function, method or coroutine function whose calls are details `name` of the stage that they are in.

    Of calls of one name within each other the outermost counts. `patch` is the module of the patch. Outside a recorded
    request a call costs one read of the context.
    """
    make = _coroutine if inspect.iscoroutinefunction(function) else _function
    return functools.wraps(function)(make(function, name, library, patch))


def _function(function: Callable[..., Any], name: str, library: str, patch: str) -> Callable[..., Any]:
    kind, switched = (name, library), switch(patch)

    def call(*args: Any, **kwargs: Any) -> Any:
        if current.get() is None and not entries:
            return function(*args, **kwargs)
        inside = _inside.get()
        if name in inside or switched.off or (record := working_for()) is None:
            return function(*args, **kwargs)
        token = _inside.set((*inside, name))
        failed = 1
        began = time_ns()
        try:
            result = function(*args, **kwargs)
            failed = 0
            return result
        finally:
            _inside.reset(token)
            _end(record, kind, began, failed, patch)

    return call


def _coroutine(function: Callable[..., Any], name: str, library: str, patch: str) -> Callable[..., Any]:
    kind, switched = (name, library), switch(patch)

    async def call(*args: Any, **kwargs: Any) -> Any:
        inside = _inside.get()
        if name in inside or switched.off or (record := working_for()) is None:
            return await function(*args, **kwargs)
        token = _inside.set((*inside, name))
        failed = 1
        began = time_ns()
        try:
            result = await function(*args, **kwargs)
            failed = 0
            return result
        finally:
            _leave(token)
            _end(record, kind, began, failed, patch)

    return call


def _leave(token: Any) -> None:
    with suppress(ValueError):  # closed in another context, which has its own
        _inside.reset(token)


def _end(record: RequestRecord, kind: Kind, began: int, failed: int, patch: str) -> None:
    try:
        ended = time_ns()
        if record.closed:
            return
        details = record.details
        if details is None:
            from stagetrace.recording.details import details_of

            details = details_of(record)
        took = max(ended - began, 0)  # the wall clock may step back
        details.add(record, kind, (began, began + took, 1, took, failed))
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        report(patch, error)
