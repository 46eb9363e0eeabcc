"""Ctrl-C ends a command soon, whatever library it is in."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

# The exit code that shells report for a process that a signal ended.
INTERRUPTED: Final = 130
_PATIENCE_S: Final = 2.0


@contextmanager
def noted(*, hurry: bool) -> Iterator[list[int]]:
    """Yield a list that is no longer empty after Ctrl-C, which raises KeyboardInterrupt as always.

    That alone is not enough: DuckDB looks for signals between queries only and makes other errors of the exception, and
    gRPC can wait for ever for a cancelled call. With `hurry` the process therefore ends soon in any case.
    """
    received: list[int] = []
    if os.name != "posix" or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield received  # a process that ignores or handles the signal continues to do so
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        if hurry:
            with _ending():
                yield received
        else:
            yield received
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _ending() -> Iterator[None]:
    """End the process if the code in this context continues for long after Ctrl-C."""
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
