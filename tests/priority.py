"""Run a process before all else on the machine, so that other tests beside it do not change what it waits for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def come_first(process: int, *, first: bool = True) -> None:
    """Let all threads of a process, and what they start from now on, have a CPU before all else; or as all else.

    Where this user may not, or the platform cannot, nothing changes.
    """
    with suppress(OSError, AttributeError):
        policy = os.SCHED_RR if first else os.SCHED_OTHER
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(int(first)))
