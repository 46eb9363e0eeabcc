"""What servers with batching share: the wait of a request for its batch, and the work for several requests at once.

Patches of libraries import it in any process: no OpenTelemetry.
"""

from __future__ import annotations

import asyncio
import functools
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.request.context import here
from stagetrace.request.current import current, recording
from stagetrace.semconv import QUEUE, QUEUE_REASON
from stagetrace.tracing.propagation import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from stagetrace.instrumentation.base import Wrap
    from stagetrace.request.remote_stages import RequestRef
    from stagetrace.request.request import Request
    from stagetrace.request.worker import Batch, Work

BATCH_WAIT = "batch"  # the reason of a request's queue wait


class Wait:
    """The wait of a request for its batch."""

    since = 0  # in nanoseconds since the epoch; 0 while it does not wait yet
    is_over = False

    def __init__(self, request: Request) -> None:
        self.request = request


wait_here: ContextVar[Any] = ContextVar("stagetrace.waiting_for_batch", default=None)  # the Wait of this code's request


def waiting_for_batch(make: Callable[[Request], Wait]) -> Wrap:
    """Return how to wrap a coroutine function in which a request waits for its batch: `make` makes the Wait of it."""

    @guarded
    def begin() -> Wait | None:
        request = recording()
        return None if request is None else make(request)

    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            one = begin()
            token = wait_here.set(one)
            try:
                return await original(*args, **kwargs)
            except asyncio.CancelledError:
                _end_in_vain(one)
                raise
            finally:
                wait_here.reset(token)

        return wait

    return wrap


@guarded_end
def _end_in_vain(wait: Wait | None) -> None:
    """Note that a request waited in vain: it was cancelled, perhaps by the server, which responds with 503."""
    if wait is not None and wait.since and not wait.is_over:
        wait.request.visit(QUEUE, (wait.since, time.time_ns()), {QUEUE_REASON: BATCH_WAIT})


def requests_of(keys: Iterable[str | None]) -> list[RequestRef]:
    """Return the requests of this process that still run, by the keys with which they were handed on."""
    from stagetrace.request.remote_stages import RequestRef, find

    found = [(key, find(key)) for key in keys if key]
    return [RequestRef(key, one.entry) for key, one in found if one is not None and one.entry is not None]


@contextmanager
def working(work: Work | Batch | None, *, ends: bool = True) -> Iterator[None]:
    """Let the block do this work, and report the stages to the requests, if that `ends` it."""
    inside = enter(work)
    try:
        yield
    finally:
        leave(work if ends else None, inside)


@guarded
def enter(work: Work | Batch | None) -> Any:
    """Enter the context of a request or batch; return what `leave` needs, None if there is nothing to leave."""
    if work is None:
        return None
    from stagetrace.request.worker import at_work

    inside = at_work(work)
    inside.__enter__()
    return inside


@guarded_end
def leave(work: Work | Batch | None, inside: Any) -> None:
    """Leave the context, and report the stages to the requests."""
    if inside is not None:
        inside.__exit__(None, None, None)
    if work is not None:
        work.finish()


@guarded
def leave_request(*_: Any, **__: Any) -> None:
    """Leave the context of the request that has started this task, as to collect batches: the task outlasts it."""
    current.set(None)
    here.attach(here.in_full(NO_CONTEXT))
