"""Large blocks of memory go back to the system when they are free."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

from stagetrace.otlp.decode.columns import arrow

_MMAP_THRESHOLD: Final = -3  # of <malloc.h>
_BYTES: Final = 1024 * 1024


def keep_large_blocks_apart() -> None:
    """Have Arrow take its memory from the C library, and glibc map each larger block on its own; elsewhere do nothing.

    Arrow's own pool keeps much of what it once had. glibc by itself stops doing so for all sizes up to 32 MiB as soon
    as one such block has been freed: a store under attributes of a mebibyte each then took twice the memory, half of it
    holes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _BYTES)
        arrow().set_memory_pool(arrow().system_memory_pool())


def give_back() -> None:
    """Return free memory to the system."""
    arrow().default_memory_pool().release_unused()
