"""How a thread of ours lets the threads of the service run in between."""

from __future__ import annotations

from stagetrace.real_threads import sleep

# A thread that gives up the interpreter for less has it back before another thread has woken up.
_PAUSE_S = 0.0001


def yield_interpreter() -> None:
    """Pause between two parts of the work on a batch, so that no thread of the service waits for the whole of it."""
    sleep(_PAUSE_S)
