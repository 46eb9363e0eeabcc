"""Processes that a test starts: each wait for one has an end, and none outlives its block."""

from __future__ import annotations

import os
import select
import subprocess
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WITHIN_S = 60


class Lines:
    """The lines of a pipe, which nothing else reads."""

    def __init__(self, pipe: IO[Any] | None) -> None:
        assert pipe is not None
        self._file = pipe.fileno()
        self._rest = b""

    def next(self) -> str:
        """Return the next line; fail where none comes, or none can come any more."""
        while b"\n" not in self._rest:
            assert select.select([self._file], [], [], WITHIN_S)[0], f"no line within {WITHIN_S} s"
            more = os.read(self._file, 65536)
            assert more, f"it ended after {self._rest!r}"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def rest(self) -> list[str]:
        """Return the whole lines that a process which has ended left."""
        while more := os.read(self._file, 65536):
            self._rest += more
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode() for line in lines]


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its stdout and stderr in pipes; kill it if it still runs at the end of the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running: subprocess.Popen[bytes] = subprocess.Popen(argv, **{**pipes, **options})
    with running as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until(
    is_so: Callable[[], object], process: subprocess.Popen[bytes] | None = None, *, within_s: float = WITHIN_S
) -> None:
    """Wait until something is so; fail where it takes too long, or the process that has to do it ends before."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert process is None or process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.01)
