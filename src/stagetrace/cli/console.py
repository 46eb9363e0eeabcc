"""The console of a command: streams that cannot control the terminal, Ctrl-C and limits of time, which end it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, TextIO, cast

from stagetrace.cli.registry import NO_ANSWER, UsageError
from stagetrace.text import printable_lines

# --- The streams of a command: whatever is written to them cannot control the terminal.


class _Printable:
    """A stream of text that escapes every character which does not show, line breaks and tabs aside."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text; return its length, as streams do."""
        self.stream.write(printable_lines(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of some texts."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream to which colours and movements of the cursor are written: all else in it is printable."""
    return stream.stream if isinstance(stream, _Printable) else stream


@contextmanager
def printable_streams() -> Iterator[None]:
    """Escape what is written to stdout and stderr; these may be closed (`>&-`) or lack characters."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_prepare, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def _prepare(stream: TextIO | None) -> TextIO:
    stream = stream or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- as long as the process
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return cast("TextIO", _Printable(stream))


# --- Ctrl-C and limits of time end a command soon, whatever library it is in.

# The exit code that shells report for a process that a signal ended.
INTERRUPTED: Final = 130
_PATIENCE_S: Final = 2.0
_AGAIN_S: Final = 0.05  # an interrupt between two queries ends neither


@contextmanager
def note_interrupts(*, hurry: bool) -> Iterator[list[int]]:
    """Yield a list that is no longer empty after Ctrl-C, which raises KeyboardInterrupt as always.

    That alone is not enough: DuckDB looks for signals between queries only and makes other errors of the exception, and
    gRPC can wait for ever for a cancelled call. With `hurry` queries are therefore interrupted, and the process ends
    soon in any case.
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
            if number[0] == signal.SIGINT and not _interrupt(over):
                leave(INTERRUPTED)


@contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise UsageError with this message if DuckDB takes longer; where it cannot be interrupted, end the process."""
    over, late = threading.Event(), threading.Event()

    def watch() -> None:
        if not over.wait(seconds):
            late.set()
            if not _interrupt(over):
                sys.stderr.write(f"stagetrace: {message}\n")
                sys.stderr.flush()
                leave(NO_ANSWER)

    watching = threading.Thread(target=watch, name="stagetrace-time-limit", daemon=True)
    watching.start()
    try:
        yield
    except Exception:
        if late.is_set():
            raise UsageError(message) from None
        raise
    finally:
        over.set()
        watching.join()


def _interrupt(over: threading.Event) -> bool:
    """Interrupt DuckDB until what it runs is over; return False if that takes too long."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        if database := sys.modules.get("stagetrace.store.database"):
            database.interrupt()
        if over.wait(_AGAIN_S):
            return True
    return False


def leave(code: int) -> NoReturn:
    """End the process at once, without the files that DuckDB would leave."""
    if database := sys.modules.get("stagetrace.store.database"):
        database.abandon()
    os._exit(code)
