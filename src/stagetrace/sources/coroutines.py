"""The stack of a request's coroutine, down to the innermost one that it awaits, in other tasks too."""

from __future__ import annotations

import gc
import sys
from functools import partial
from types import AsyncGeneratorType, CodeType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any, Final

from stagetrace.sources.stacks import MAX_KEPT, Place, Stack, frame_of, frames_from, is_ours, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextvars import Context
    from types import FrameType

MAX_AWAITED: Final = 200  # coroutines and futures, each awaited by the one before
MAX_BESIDE: Final = 32  # tasks of a request, each looked at as the first one
_KINDS: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
MAX_REFERENTS: Final = 16  # of an iterator that stands for an awaitable


def of_coroutine(
    work: Any,
    thread_frame: FrameType | None,
    tasks: Tasks,
    belongs: Callable[[Context], bool],
    shows: Callable[[Stack], bool] = lambda _: True,
) -> tuple[Stack, bool]:
    """Return the stack of a request's coroutine or asynchronous generator, and whether it runs.

    The thread of its event loop stands at `thread_frame`. The coroutine may only listen for the disconnect of the
    client, or take what another task makes, so that its stack shows nothing of the work. Then the stack continues in
    another task of the request, by its context: one that `belongs`, and that runs or whose stack `shows` the work.
    """
    frames, on_thread = frames_from(thread_frame)
    running = {frame: at for at, frame in enumerate(frames)}
    places: list[Place] = []
    awaited, is_beside = work, False
    for _ in range(MAX_AWAITED):
        if awaited is None:
            break
        if is_future(awaited):
            following = _behind(awaited, running, tasks)
            if following is None and not is_beside and (_listens(places) or not shows(_joined([], places))):
                is_beside = True
                beside = tasks.beside(awaited, belongs)[:MAX_BESIDE]
                stacks = [(one, *of_coroutine(one, thread_frame, tasks, lambda _: False)) for one in beside]
                found = [one for one, _, runs in stacks if runs] or [one for one, stack, _ in stacks if shows(stack)]
                following = next(iter(found or (beside if _listens(places) else ())), None)
            awaited = following
            continue
        frame, awaited = _step(awaited)
        if frame in running:
            return _joined(on_thread[: running[frame] + 1], places), True
        if frame is not None:
            places.append(place_of(frame))
    return _joined([], places), False


def _joined(inner: Sequence[Place], outer: Sequence[Place]) -> Stack:
    return tuple([*inner, *reversed(outer)][:MAX_KEPT])


def _step(awaited: Any) -> tuple[FrameType | None, Any]:
    """Return the frame of an awaitable, None if it has none, and what it awaits itself."""
    kind = type(awaited)
    if kind is GeneratorType:
        frame = frame_of(awaited, "gi_frame")
        return frame, _stepped(awaited, frame) if _steps(awaited.gi_code) else awaited.gi_yieldfrom
    if kind is AsyncGeneratorType:
        return frame_of(awaited, "ag_frame"), awaited.ag_await
    if hasattr(kind, "cr_frame"):  # a coroutine, Cython's too
        return frame_of(awaited, "cr_frame"), awaited.cr_await
    # An iterator of the interpreter's: of a coroutine, of a future, of one step of an asynchronous generator.
    return None, next(filter(_is_awaitable, gc.get_referents(awaited)[:MAX_REFERENTS]), None)


def _steps(code: CodeType) -> bool:
    return code.co_name == "stepped" and is_ours(code)


def _stepped(steps: Any, frame: FrameType | None) -> Any:
    """Return the work that our generator passes on step by step: its first local variable."""
    return next(filter(_is_awaitable, gc.get_referents(steps, frame)), None)


def _is_awaitable(thing: Any) -> bool:
    return isinstance(thing, _KINDS) or is_future(thing) or type(thing).__name__ == "async_generator_asend"


def _behind(future: Any, running: Mapping[FrameType, int], tasks: Tasks) -> Any:
    """Return what a future waits for: a coroutine, or another future; None if that is unknown, or it is done."""
    if future.done():
        return None
    if hasattr(type(future), "get_coro"):
        return future.get_coro()
    return _first(tasks.behind(future), running)


def _first(futures: Iterable[Any], running: Mapping[FrameType, int]) -> Any:
    """Return the future whose task runs at the moment, else the first; None of none."""
    first = None
    for future in futures:
        if hasattr(type(future), "get_coro") and _step(future.get_coro())[0] in running:
            return future
        if first is None:
            first = future
    return first


def _listens(places: list[Place]) -> bool:
    """Return whether a coroutine is in our `receive`, and awaits no part of the body: that would be in `watched`."""
    ours = [code for code, _ in places if is_ours(code)]
    return bool(ours) and ours[-1].co_name == "receive" and ours[-1].co_filename.endswith("asgi_request.py")


# --- What completes a future that a coroutine awaits: the tasks of `gather`, of `wait`, of a task group.
#
# A task calls its callbacks as it ends, and one of them refers to the future, itself or by an object such as the task
# group. Objects are looked into as the garbage collector does: that runs no code of theirs.

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
