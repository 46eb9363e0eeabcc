"""Stacks of this process's threads, greenlets and coroutines, as places in code: never a value of a variable.

A stack is read when a request is late, from another thread, under the GIL. Frames are released at once: a reference to
one keeps alive what its variables refer to.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import settings
from stagetrace.sources.base import Source
from stagetrace.system.import_hooks import finder
from stagetrace.system.native import native
from stagetrace.system.threads import get_ident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


class NamedCode(NamedTuple):
    """Code of another process: what is known of its code object."""

    co_filename: str
    co_name: str
    co_qualname: str
    co_flags: int


# A place is a code object and a line of it; a stack is its places, the innermost first.
Place = tuple[CodeType | NamedCode, int]
Stack = tuple[Place, ...]

MAX_WALKED: Final = 1_000  # frames of one stack that are looked at
MAX_KEPT: Final = 64  # innermost frames that are kept

_OURS: Final = str(Path(__file__).parent.parent) + os.sep
_GENERATED: Final = "<stagetrace."  # code that we compile
# Where the work of a request begins on a thread's stack: what is further out belongs to the server.
_ENTRIES: Final = tuple(
    _OURS + name.replace("/", os.sep)
    for name in (
        "protocols/asgi",
        "instrumentation/async_servers",
        "protocols/grpc_aio.py",
        "protocols/grpc_threads.py",
        "instrumentation/served_call.py",
        "protocols/wsgi",
        "patches/django.py",
        "patches/fastapi.py",
        "patches/flask.py",
        "patches/starlette.py",
        "request/loop_blockers.py",
        "request/working.py",
    )
)
# The same, for only this function of a file.
_ENTRY_CALLS: Final = (
    (_OURS + "patches/anyio.py".replace("/", os.sep), "_task_of"),
    (_OURS + "patches/concurrent_futures.py".replace("/", os.sep), "__call__"),
)
# Where code stands that waits for another thread: for a future, a queue, an event, the end of a thread.
_WAITS_FOR_THREAD: Final = {
    "wait": ("threading.py",),
    "join": ("threading.py",),
    "_wait_for_tstate_lock": ("threading.py",),
    "acquire": ("gevent/thread.py",),
}
# What gives a thread its work: an event loop, or the loop of a pool's thread. By the function, and how its path ends.
_ANYIO: Final = "anyio/_backends/_asyncio.py"
_TRIO: Final = "trio/_core/_thread_cache.py"
WORKER_THREADS: Final = (_ANYIO, _TRIO)  # of anyio, on asyncio and on trio
_GIVERS: Final = {
    "_run": ("asyncio/events.py",),  # of a callback; tasks are some
    "_run_once": ("asyncio/base_events.py",),
    "unrolled_run": ("trio/_core/_run.py",),
    "_work": (_TRIO,),
    "_worker": ("concurrent/futures/thread.py",),
    "run": (_ANYIO, "trio/_core/_run.py", "gevent/hub.py"),
}
# What such a loop calls while it has no work.
_WAITS: Final = {
    "select": ("selectors.py",),
    "get_events": ("trio/_core/_io_epoll.py", "trio/_core/_io_kqueue.py"),
    "get": ("queue.py",),
}


def _lack() -> str | None:
    if not hasattr(sys, "_current_frames"):
        return "this interpreter does not show the stacks of its threads"
    if _in_c is None and sys.version_info[:2] == (3, 11):
        return "without stagetrace's extension in C, Python 3.11 may hang or crash as it shows the stack of a thread"
    has_gil = getattr(sys, "_is_gil_enabled", None)
    return None if has_gil is None or has_gil() else "without the GIL reading a stack stops all threads"


_in_c: Any = native("stacks")
SOURCE: Final = Source(__name__, "the stacks of late requests", settings.STALLS, _lack)


def is_ours(code: CodeType | NamedCode) -> bool:
    """Return whether code is stagetrace's own, or that of an extension."""
    return code.co_filename.startswith((_OURS, _GENERATED)) or code.co_filename.startswith(finder.folders)


def of_threads() -> dict[int, FrameType]:
    """Return the innermost frame of each other thread that runs Python, by its ident."""
    found: dict[int, FrameType] = _uncollected(sys._current_frames)  # noqa: SLF001
    found.pop(get_ident(), None)  # the caller's would refer to itself: all that it holds would wait for the collector
    return found


def frame_of(thing: Any, name: str) -> FrameType | None:
    """Return the frame that a coroutine, a generator or a greenlet has under this name."""
    frame: FrameType | None = _uncollected(getattr, thing, name)
    return frame


def frames_from(frame: FrameType | None) -> tuple[list[FrameType], list[tuple[CodeType, int]]]:
    """Return a frame and those that called it, the innermost first, and the place at which each stands."""
    if _in_c is not None:
        found: tuple[list[FrameType], list[tuple[CodeType, int]]] = _in_c.walk(frame, MAX_WALKED)
        return found
    frames: list[FrameType] = []
    while frame is not None and len(frames) < MAX_WALKED:
        frames.append(frame)
        frame = frame.f_back
    return frames, list(map(place_of, frames))


def _uncollected(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that makes frames, without a garbage collection meanwhile (native/stacks.c says why)."""
    return function(*args) if _in_c is None else _in_c.uncollected(function, *args)


def place_of(frame: FrameType) -> tuple[CodeType, int]:
    """Return the place at which a frame stands."""
    return frame.f_code, frame.f_lineno or 0


def of_frame(frame: FrameType | None) -> Stack:
    """Return the stack of a frame, from where the work of a request begins; all of it where that is nowhere."""
    stack = tuple(frames_from(frame)[1])
    return stack[: min(_begin(stack) or len(stack), MAX_KEPT)]


def of_request(frame: FrameType | None) -> Stack:
    """Return the stack of a frame, from where the work of a request begins; empty where that is nowhere."""
    return from_entry(frames_from(frame)[1])


def from_entry(places: Sequence[Place]) -> Stack:
    """Return places, the innermost first, from where the work of a request begins; none where that is nowhere."""
    return tuple(places[: min(_begin(places), MAX_KEPT)])


def _begin(stack: Sequence[Place]) -> int:
    """Return how many places of a stack belong to a request, the outermost of them where its work begins."""
    entries = (at for at in range(len(stack), 0, -1) if _is_entry(stack[at - 1][0]))
    return next(entries, 0)


def _is_entry(code: CodeType | NamedCode) -> bool:
    file = code.co_filename
    if file.startswith(_OURS):
        return file.startswith(_ENTRIES) or (file, code.co_name) in _ENTRY_CALLS
    return file.startswith(finder.entries)


def waits_for_thread(stack: Stack) -> bool:
    """Return whether code stands where it waits for another thread, by the means of the standard library or gevent."""
    return bool(stack) and bool(_path_end_of(stack[0][0], _WAITS_FOR_THREAD))


def of_greenlet(greenlet: Any, thread_frame: FrameType | None) -> Stack:
    """Return the stack of a greenlet; the thread that it belongs to stands at `thread_frame`."""
    frame = frame_of(greenlet, "gr_frame")
    if frame is None and greenlet:  # it is the one that runs
        frame = thread_frame
    return of_request(frame)


def of_work(frame: FrameType | None) -> tuple[Stack, str]:
    """Return the stack of the work that a thread does, empty while it waits for some; and what gives it, a path.

    That is "" where it is unknown; then only the work of a request is known to be some.
    """
    return work_of(frames_from(frame)[1])


def work_of(stack: Iterable[Place]) -> tuple[Stack, str]:
    """Return what `of_work` does, of the places of a thread."""
    places: list[Place] = []
    giver = ""
    for place in stack:
        if giver := _giver(place[0]):
            break
        places.append(place)
    begins = _begin(places)
    if giver and places and not begins and not _path_end_of(places[-1][0], _WAITS):
        begins = len(places)
    return tuple(places[: min(begins, MAX_KEPT)]), giver


def _giver(code: CodeType | NamedCode) -> str:
    if code.co_name in _GIVERS and (found := _path_end_of(code, _GIVERS)):
        return found
    names = getattr(code, "co_names", ())
    if "run_until_complete" in names or "run_forever" in names:
        return code.co_filename  # it calls a loop written in C, which has no frame
    return ""


def _path_end_of(code: CodeType | NamedCode, known: Mapping[str, tuple[str, ...]]) -> str:
    """Return how the path of one of these functions ends, "" where the code is none of them."""
    path = code.co_filename
    return next((end for end in known.get(code.co_name, ()) if path.endswith(end)), "")
