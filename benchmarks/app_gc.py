"""Serve the measured service and write figures of its garbage collector to a file.

BENCH_GC_FILE names the file: nine 64-bit floats, for the generations 0, 1 and 2 the number of collections, their
seconds and the number of cyclic objects found. Any process may read it at any time. SIGUSR1 starts a full collection.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

BYTES = 9 * 8


class Watch:
    """Record each collection, without objects that the collector would have to traverse."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(BYTES))
        with file.open("r+b") as opened:
            self._figures = memoryview(mmap.mmap(opened.fileno(), BYTES)).cast("d")
        self._started = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
            return
        generation = info["generation"]
        self._figures[generation] += 1
        self._figures[3 + generation] += time.perf_counter() - self._started
        self._figures[6 + generation] += info["collected"]


def _collect(_number: int, _frame: FrameType | None) -> None:
    gc.collect()


gc.callbacks.append(Watch(Path(os.environ["BENCH_GC_FILE"])))
signal.signal(signal.SIGUSR1, _collect)

app = import_module("app").app  # watched from its import on
