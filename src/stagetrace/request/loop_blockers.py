"""The event loop blocker: the request that has blocked a thread for long, so that it served no other one meanwhile.

A request that has waited in its socket looks here for its blocker. Known are the long steps of requests' own tasks, and
the long calls of models. Not known are the work of tasks that a request has started, and what runs between requests.
"""

from __future__ import annotations

import types
from collections import deque
from threading import get_ident
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded, guarded_end
from stagetrace.sources.thread_cpu import COMPUTED, DIVIDED_NS, between, end_section, last_sample, sample
from stagetrace.system.bounded import copied

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

LONG_NS: Final = 4_000_000
MAX_KEPT: Final = 64

_blocked: deque[tuple[int, int, int, str, str]] = deque(maxlen=MAX_KEPT)  # thread, start, end, request, model


def note(start: int, end: int, request: Any, model: str = "") -> None:
    """Note that a request, perhaps with a call of a model, blocked this thread: [start, end), ns since the epoch."""
    _blocked.append((get_ident(), start, end, getattr(request, "label", None) or "a request", model))


@guarded
def blocker(start: int, end: int) -> str | None:
    """Return what has blocked this thread for more than half of [start, end): request and model; None if unknown."""
    thread = get_ident()
    shares: dict[tuple[str, str], int] = {}
    for blocked, since, until, request, model in reversed(copied(_blocked)):
        if until <= start:
            break
        overlap = min(end, until) - max(start, since)
        if blocked == thread and overlap > 0:
            shares[request, model] = shares.get((request, model), 0) + overlap
    # A model's call is a part of a step of the same request, and more exact.
    for (request, model), overlap in sorted(shares.items(), key=lambda item: (bool(item[0][1]), item[1]), reverse=True):
        if 2 * overlap > end - start:
            return f"{request}, {model}" if model else request
    return None


@guarded
def note_behind(start: int, end: int, request: Any) -> None:
    """Note on a request, suspended in [start, end), since when other work had blocked the loop that resumed it."""
    at = blocked_since(start, end)
    if end - at >= LONG_NS:
        request.was_behind(at, end, blocker(at, end) or "other requests")


def blocked_since(start: int, end: int) -> int:
    """Return since when, of [start, end), other work had blocked this thread up to the end; the end if none had.

    One long step after the other: had the loop been free, it would have run what was ready.
    """
    thread, at = get_ident(), end
    for blocked, since, until, _, _ in reversed(copied(_blocked)):
        if until <= start:
            break
        if blocked == thread and since < at and at - until < max(LONG_NS, (until - since) // 8):
            at = max(since, start)
    return at


@guarded_end
def end_step(began: int, ended: int, request: Any) -> None:
    """Note a step of a request's work: how its time divides, and, if it was long, that it blocked the thread.

    A step that waited for the GIL or a CPU most of the time was held up itself: it is no blocker.
    """
    first, request.step = request.step, None
    if request.closed:  # and divided
        end_section()
        last = last_sample()
    else:
        last = request.divide(first)
    took = ended - began
    if took < LONG_NS:
        return
    if first is not None and last is not None and 2 * (last[COMPUTED] - first[COMPUTED]) < took:
        share = between(first, last)
        if share is not None and 2 * (share.waited + share.for_gil) > took:
            return
    note(began, ended, request)


@types.coroutine
def stepped(work: Coroutine[Any, Any, Any], request: Any) -> Generator[Any, Any, Any]:
    """Await `work`, which a task does for a request, and note each step of it that is not short.

    While a step lasts, the thread's CPU sample at its begin is the request's `step`. Of a request in several tasks, one
    steps at a time, and is its `work`; between the steps of all, the request is suspended, and the task that began last
    is.
    """
    step: Any = work.send
    value: Any = None
    outer, request.work = request.work, work
    while True:
        began, ended = time_ns(), request.suspended_at
        if ended and began - ended >= LONG_NS:
            note_behind(ended, began, request)
        waiting, request.work = request.work, work
        request.step = sample(began)
        try:
            awaited = step(value)
        except BaseException as error:
            ended = request.suspended_at = time_ns()
            if ended - began >= DIVIDED_NS:
                end_step(began, ended, request)
            else:
                request.step = None
            request.work = outer if waiting is work else waiting
            if isinstance(error, StopIteration):
                return error.value
            del outer, request, step, value, waiting  # the service may keep the exception, and with it this frame
            raise
        ended = request.suspended_at = time_ns()
        if ended - began >= DIVIDED_NS:
            end_step(began, ended, request)
        else:
            request.step = None
        if request.work is work:
            request.work = waiting
        waiting = None
        try:
            value = yield awaited
            step = work.send
        except GeneratorExit:
            request.work = outer
            work.close()
            raise
        except BaseException as error:  # noqa: BLE001 -- what is thrown into the task is for its work
            step, value = work.throw, error
