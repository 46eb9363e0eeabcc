"""Show the wait for a worker thread, in which FastAPI and Starlette run synchronous handlers, as `queue`."""

from __future__ import annotations

import functools
import weakref
from asyncio import _get_running_loop
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.instrumentation.pool import wait
from stagetrace.recording.current import recording
from stagetrace.semconv import QUEUE
from stagetrace.sources import threads
from stagetrace.sources.threads import DIVIDED_NS, account

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.recording.timeline import Timeline
    from stagetrace.sources.threads import Reading

WHERE = "stagetrace.instrumentation.anyio"
REASON = "thread_pool"

_nowhere: Callable[[], Any] = lambda: None  # noqa: E731
_default: tuple[Callable[[], Any], Any] = (_nowhere, None)  # an event loop, weakly, and its own limiter


def hook(module: Any) -> None:
    """Wrap `anyio.to_thread.run_sync`."""
    original = module.run_sync
    default = module.current_default_thread_limiter
    hook = switch(WHERE)

    @functools.wraps(original)
    async def run_sync(func: Any, *args: Any, **kwargs: Any) -> Any:
        timeline = None if hook.off else recording()
        if timeline is None:
            return await original(func, *args, **kwargs)
        waiting = [timeline]  # whoever takes it out ends the wait: the thread, or the loop if no thread took it up
        asked, ended = time_ns(), [0]

        def work(*work_args: Any) -> Any:
            _end(waiting)
            now = time_ns()
            is_late = now - asked >= DIVIDED_NS
            previous = _before() if is_late else None
            first = account(now)
            if is_late:
                _note_hand_over(timeline, (asked, now), roomy, (previous, first))
            try:
                return func(*work_args)
            finally:
                ended[0] = time_ns()
                _divide(timeline, first, ended[0])

        roomy = _begin(timeline, kwargs.get("limiter"), default)
        try:
            return await original(work, *args, **kwargs)
        finally:
            _end(waiting)
            now = time_ns()
            if ended[0] and now - ended[0] >= DIVIDED_NS:
                timeline.handed_over(ended[0], now)  # back to the event loop

    module.run_sync = run_sync


@guarded
def _begin(timeline: Timeline, given: Any, default: Callable[[], Any]) -> Any:
    """Return the pool's limiter if it has a token left, else None."""
    limiter = _default_limiter(default) if given is None else given
    has_room = limiter.available_tokens > 0
    waiters = 0 if has_room else limiter.statistics().tasks_waiting
    timeline.enter(QUEUE, wait(REASON, limiter.total_tokens, waiters))
    return limiter if has_room else None


def _default_limiter(ask: Callable[[], Any]) -> Any:
    """Return the limiter of this event loop, which to ask for takes anyio 2 us."""
    global _default  # noqa: PLW0603
    loop = _get_running_loop()
    if loop is None:  # trio
        return ask()
    known, limiter = _default
    if known() is not loop:
        limiter = ask()
        _default = (weakref.ref(loop), limiter)
    return limiter


@guarded
def _before() -> Reading | None:
    return threads.before()


@guarded_end
def _note_hand_over(
    timeline: Timeline, times: tuple[int, int], roomy: Any, accounts: tuple[Reading | None, Reading | None]
) -> None:
    """Note for how long the wait was not for a thread to be free: this one was, and could not run.

    `roomy` is the pool's limiter if it had a token left when the thread was asked for, `accounts` the thread's.
    """
    asked, now = times
    previous, first = accounts
    if first is None:
        return
    had_room = roomy is not None and roomy.available_tokens > 0  # else others were before it
    timeline.handed_over(asked if had_room else max(asked, threads.left()), now, threads.waited(previous, first))


@guarded_end
def _divide(timeline: Timeline, first: Reading | None, now: int) -> None:
    threads.leave(now)
    timeline.divide(first)


def _end(waiting: list[Timeline]) -> None:
    if waiting:
        try:
            waiting.pop().leave(QUEUE)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report(WHERE, error)
