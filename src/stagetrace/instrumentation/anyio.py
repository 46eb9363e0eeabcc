"""Show the wait for a worker thread, in which FastAPI and Starlette run synchronous handlers, as `queue`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import recording
from stagetrace.semconv import QUEUE, QUEUE_REASON

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.recording.timeline import Timeline

REASON = {QUEUE_REASON: "thread_pool"}


def hook(module: Any) -> None:
    """Wrap `anyio.to_thread.run_sync`."""
    original = module.run_sync

    @functools.wraps(original)
    async def run_sync(func: Any, *args: Any, **kwargs: Any) -> Any:
        wait = _begin()
        if wait is None:
            return await original(func, *args, **kwargs)

        def work(*work_args: Any) -> Any:
            wait.end()
            return func(*work_args)

        try:
            return await original(work, *args, **kwargs)
        finally:
            wait.end()  # cancelled before a thread took it up

    module.run_sync = run_sync


class _Wait:
    """One wait for a thread; ends once, in the thread or in the loop."""

    __slots__ = ("_end",)

    def __init__(self, timeline: Timeline) -> None:
        timeline.begin(QUEUE, REASON)
        self._end: Callable[[str], Any] | None = timeline.end

    def end(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end(QUEUE)


@guarded
def _begin() -> _Wait | None:
    timeline = recording()
    return _Wait(timeline) if timeline is not None else None
