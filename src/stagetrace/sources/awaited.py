"""What completes a future that a coroutine awaits: the tasks of `gather`, of `wait`, of a task group.

A task calls its callbacks as it ends, and one of them refers to the future, itself or by an object such as the task
group. Objects are looked into as the garbage collector does: that runs no code of theirs.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

MAX_TASKS: Final = 2_000  # of all loops; where there are more, none is looked at
MAX_ATTRIBUTES: Final = 32  # of an object that is looked into
_COLLECTIONS: Final = (list, dict, set, frozenset, tuple)


def is_future(thing: Any) -> bool:
    """Return whether a thing is a future or a task of asyncio, or one that passes for it there."""
    return hasattr(type(thing), "_asyncio_future_blocking")


class Tasks:
    """The unfinished tasks of event loops, each gone through once: use it for one look at the process."""

    def __init__(self) -> None:
        self._completing: dict[int, dict[int, list[Any]]] = {}  # by loop and future, by their ids
        self._all: dict[int, list[Any]] = {}  # by the id of the loop

    def behind(self, future: Any) -> list[Any]:
        """Return the unfinished futures, most of them tasks, that a future waits for; empty if none is known."""
        children = getattr(future, "_children", None)  # of `gather`
        return [child for child in children or self._completing_one(future) if not child.done()]

    def beside(self, future: Any, belongs: Callable[[Context], bool]) -> list[Any]:
        """Return the tasks that await other futures than this, in contexts that belong to the same request."""
        return [
            task
            for task in self._of(future.get_loop())
            if (waiter := getattr(task, "_fut_waiter", None)) is not None
            and waiter is not future
            and any(belongs(context) for _, context in getattr(waiter, "_callbacks", None) or ())
        ]

    def _completing_one(self, future: Any) -> list[Any]:
        loop = future.get_loop()
        known = self._completing.get(id(loop))
        if known is None:
            known = self._completing[id(loop)] = _by_completed(self._of(loop))
        return known.get(id(future), [])

    def _of(self, loop: Any) -> list[Any]:
        tasks = self._all.get(id(loop))
        if tasks is None:
            tasks = self._all[id(loop)] = _unfinished(loop)
        return tasks


def _unfinished(loop: Any) -> list[Any]:
    """Return the unfinished tasks of a loop in the order of their names: by default, that in which they were made."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return []
    known: Any = getattr(asyncio.tasks, "_all_tasks", None) or getattr(asyncio.tasks, "_scheduled_tasks", ())
    if len(known) > MAX_TASKS:
        return []
    tasks = asyncio.all_tasks(loop)
    return sorted(tasks, key=lambda task: (len(task.get_name()), task.get_name()))


def _by_completed(tasks: list[Any]) -> dict[int, list[Any]]:
    """Return for the id of each future the tasks that complete it by a callback of theirs."""
    found: dict[int, list[Any]] = {}
    for task in tasks:
        for callback, _ in getattr(task, "_callbacks", None) or ():
            for thing in _looked_into(callback):
                if is_future(thing):
                    found.setdefault(id(thing), []).append(task)
    return found


def _looked_into(callback: Any) -> Iterator[Any]:
    """Yield what a callback refers to, and what each of that refers to."""
    things: list[Any] = []
    if type(callback) is MethodType:
        things.append(callback.__self__)
    elif type(callback) is partial:
        things.extend(callback.args)
    elif type(callback) is FunctionType:
        things.extend(content for cell in callback.__closure__ or () for content in gc.get_referents(cell))
    for thing in things:
        yield thing
        if not is_future(thing):
            yield from _attributes(thing)


def _attributes(thing: Any) -> Iterator[Any]:
    if type(thing) in _COLLECTIONS:  # of any size
        return
    for part in gc.get_referents(thing)[:MAX_ATTRIBUTES]:
        if type(part) is dict and len(part) <= MAX_ATTRIBUTES:
            yield from list(part.values())
        else:
            yield part
