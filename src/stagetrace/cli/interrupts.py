"""Ctrl-C ends a command soon, whatever library it is in."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# As a shell reports a process that the signal ended.
INTERRUPTED: Final = 130
_PATIENCE_S: Final = 2.0


@contextmanager
def noted(*, hurry: bool) -> Iterator[list[int]]:
    """Give a list that is no longer empty once Ctrl-C has come, which raises KeyboardInterrupt as ever.

    That alone is not enough: DuckDB looks for signals between queries only and makes other errors of the exception, and
    gRPC can wait for ever for a call that was broken off. With `hurry` the process therefore ends soon in any case.
    """
    came: list[int] = []
    if os.name != "posix" or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield came  # who ignores it, or handles it, goes on doing so
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        if hurry:
            with _ending():
                yield came
        else:
            yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _ending() -> Iterator[None]:
    """End the process if Ctrl-C comes and what is within this context goes on for long."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()
    threading.Thread(target=_end, args=(reading, over), name="stagetrace-interrupts", daemon=True).start()
    # Written to by the handler in C, at once, though the main thread may run no Python for long.
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(writing)


def _end(reading: int, over: threading.Event) -> None:
    with open(reading, "rb", buffering=0) as signals:
        while number := signals.read(1):
            if number[0] == signal.SIGINT and not over.wait(_PATIENCE_S):
                os._exit(INTERRUPTED)
