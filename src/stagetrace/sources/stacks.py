"""Stacks of this process's threads and coroutines, as places in code: never a value of a variable.

A stack is read when a request is late, from another thread, under the GIL. Frames are let go of at once: who holds one
keeps alive what its variables refer to.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import get_ident
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import config
from stagetrace.sources.base import Source

if TYPE_CHECKING:
    from collections.abc import Mapping


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
MAX_AWAITED: Final = 200  # coroutines, each awaited by the one before

_OURS: Final = str(Path(__file__).parent.parent) + os.sep
# Where the work of a request begins on a thread's stack: what is further out belongs to the server.
_ENTRIES: Final = tuple(
    _OURS + name.replace("/", os.sep)
    for name in (
        "api/",
        "instrumentation/asgi/",
        "instrumentation/async_servers/",
        "instrumentation/frameworks/",
        "instrumentation/grpc_server/",
        "instrumentation/model_servers/",
        "instrumentation/thread_pools/",
        "instrumentation/wsgi/",
        "recording/loop_blockers.py",
        "recording/pool_task.py",
    )
)
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
# What it calls while it has none to give.
_WAITS: Final = {
    "select": ("selectors.py",),
    "get_events": ("trio/_core/_io_epoll.py", "trio/_core/_io_kqueue.py"),
    "get": ("queue.py",),
}


def _lack() -> str | None:
    if not hasattr(sys, "_current_frames"):
        return "this interpreter does not show the stacks of its threads"
    has_gil = getattr(sys, "_is_gil_enabled", None)
    return None if has_gil is None or has_gil() else "without the GIL reading a stack stops all threads"


SOURCE: Final = Source(__name__, "the stacks of late requests", config.STALLS, _lack)


def is_ours(code: CodeType | NamedCode) -> bool:
    """Return whether code is stagetrace's own."""
    return code.co_filename.startswith(_OURS)


def of_threads() -> dict[int, FrameType]:
    """Return the innermost frame of each other thread that runs Python, by its ident."""
    found = sys._current_frames()  # noqa: SLF001
    found.pop(get_ident(), None)  # the caller's would refer to itself: all that it holds would wait for the collector
    return found


def of_frame(frame: FrameType | None) -> Stack:
    """Return the stack of a frame, from where the work of a request begins; all of it where that is nowhere."""
    places: list[Place] = []
    begins = 0
    while frame is not None and len(places) < MAX_WALKED:
        code = frame.f_code
        places.append((code, frame.f_lineno or 0))
        if code.co_filename.startswith(_ENTRIES):
            begins = len(places)
        frame = frame.f_back
    return tuple(places[: min(begins or len(places), MAX_KEPT)])


def of_work(frame: FrameType | None) -> tuple[Stack, str]:
    """Return the stack of the work that a thread does, empty while it waits for some; and what gives it, a path.

    That is "" where it is unknown; then only the work of a request is known to be some.
    """
    places: list[tuple[CodeType, int]] = []
    begins, giver = 0, ""
    while frame is not None and len(places) < MAX_WALKED:
        code = frame.f_code
        if giver := _giver(code):
            break
        places.append((code, frame.f_lineno or 0))
        if code.co_filename.startswith(_ENTRIES):
            begins = len(places)
        frame = frame.f_back
    if giver and places and not begins and not _found(places[-1][0], _WAITS):
        begins = len(places)
    return tuple(places[: min(begins, MAX_KEPT)]), giver


def _giver(code: CodeType) -> str:
    found = _found(code, _GIVERS)
    if not found and ("run_until_complete" in code.co_names or "run_forever" in code.co_names):
        return code.co_filename  # it calls a loop written in C, which has no frame
    return found


def _found(code: CodeType, known: Mapping[str, tuple[str, ...]]) -> str:
    """Return how the path of one of these functions ends, "" where the code is none of them."""
    path = code.co_filename
    return next((end for end in known.get(code.co_name, ()) if path.endswith(end)), "")


def of_coroutine(work: Any) -> Stack:
    """Return the stack of a coroutine that is suspended, down to the innermost one that it awaits."""
    places: list[Place] = []
    while work is not None and len(places) < MAX_AWAITED:
        kind = type(work)
        if kind is CoroutineType:
            frame, work = work.cr_frame, work.cr_await
        elif kind is GeneratorType:
            frame, work = work.gi_frame, work.gi_yieldfrom
        elif kind is AsyncGeneratorType:
            frame, work = work.ag_frame, work.ag_await
        else:
            break  # a future, or an awaitable of an extension
        if frame is None:
            break  # it has ended meanwhile
        places.append((frame.f_code, frame.f_lineno or 0))
    places.reverse()
    return tuple(places[:MAX_KEPT])
