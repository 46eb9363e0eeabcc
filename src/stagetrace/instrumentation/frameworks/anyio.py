"""anyio: the tasks of its task groups, in which Starlette, FastAPI, Litestar and sse-starlette make and send streams.

Each step of a task that is started for a request is a step of that request's work, as those of its handler are.
"""

from __future__ import annotations

import functools
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report, switch
from stagetrace.recording.current_record import current

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from stagetrace.recording.record import RequestRecord


def patch_backend(module: ModuleType) -> None:
    """Wrap `start_soon` of the task group of asyncio, or of trio."""
    module.TaskGroup.start_soon = _following(module.TaskGroup.start_soon)


def _following(original: Any) -> Any:
    patch = switch(__name__)

    @functools.wraps(original)
    def start_soon(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        record = None if patch.off else current.get()
        followed = None if record is None or record.closed else _followed(func, record)
        return original(self, followed or func, *args, **kwargs)

    return start_soon


@guarded
def _followed(func: Callable[..., Any], record: RequestRecord) -> Any:
    return _Followed(func, record)


class _Followed:
    """A function of which the group starts a task: by its module and name, it names that."""

    def __init__(self, func: Callable[..., Any], record: RequestRecord) -> None:
        self._func, self._record = func, record
        for name in ("__module__", "__qualname__"):
            if hasattr(func, name):
                setattr(self, name, getattr(func, name))

    def __call__(self, *args: Any) -> Any:
        work = self._func(*args)
        # Of anything else the group says what is wrong with it.
        return self._named_task(work) if type(work) is CoroutineType else work

    def _named_task(self, work: Any) -> Any:
        task: Any = _task_of(_Unawaited(work), self._record)
        task.__name__, task.__qualname__ = work.__name__, work.__qualname__
        return task


class _Unawaited:
    """A coroutine that its task may never have begun with: one that is cancelled at once has nothing to warn of."""

    def __init__(self, work: CoroutineType[Any, Any, Any]) -> None:
        self.work = work

    def __del__(self) -> None:
        self.work.close()


async def _task_of(one: _Unawaited, record: RequestRecord) -> Any:
    work: Any = one.work
    if record.step is None:  # else it was begun at once, within a step
        try:
            from stagetrace.recording.loop_blockers import stepped

            work = stepped(work, record)
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(__name__, error)
    return await work
