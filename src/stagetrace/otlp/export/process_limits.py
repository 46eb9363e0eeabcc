"""Whether this process can have the descriptors and threads that an exporter takes.

gRPC ends the process by `abort()` where it gets none, and an import that has failed half-way for want of them may fail
for good: so they are tried first, and given back.
"""

from __future__ import annotations

import _thread
import os
import time
from typing import Final

DESCRIPTORS: Final = 8  # gRPC takes five
_GONE_S: Final = 0.01  # an ended thread counts as one for a moment


class NoRoomError(Exception):
    """Descriptors or threads are missing now; later there may be some."""


def require(*, grpc: bool) -> None:
    """Raise NoRoomError where an exporter, one that uses `grpc` or not, would not get what it takes."""
    _descriptors()
    if grpc:
        _threads(min(16, os.cpu_count() or 2) + 6)  # as many as gRPC starts, and two more


def _descriptors() -> None:
    opened: list[int] = []
    try:
        opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(DESCRIPTORS))
    except OSError as error:
        raise NoRoomError(f"fewer than {DESCRIPTORS} file descriptors are left, see `ulimit -n`") from error
    finally:
        for number in opened:
            os.close(number)


def _threads(wanted: int) -> None:
    ends = _thread.allocate_lock()

    def wait() -> None:
        with ends:
            pass

    ends.acquire()
    try:
        for _ in range(wanted):
            _thread.start_new_thread(wait, ())
    except (RuntimeError, MemoryError) as error:
        if "interpreter shutdown" in str(error):  # of Python 3.12 and later; gRPC's threads are not Python's
            return
        raise NoRoomError(f"fewer than {wanted} threads can be started, which gRPC needs, see `ulimit -u`") from error
    finally:
        ends.release()
        time.sleep(_GONE_S)
