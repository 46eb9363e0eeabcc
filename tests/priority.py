"""Give a process priority on the machine, so that other tests beside it do not change what it waits for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

# For tests with such processes: two that have priority would compete.
ONE_AT_A_TIME = pytest.mark.xdist_group("priority")


def come_first(process: int, *, first: bool = True) -> None:
    """Give all threads of a process and of its children, and those of later, priority for a CPU; or take it away.

    If this user may not, or the platform cannot, nothing changes.
    """
    with suppress(OSError, AttributeError):
        policy = os.SCHED_RR if first else os.SCHED_OTHER
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(int(first)))
            for child in (thread / "children").read_text().split():  # a worker of gunicorn, say
                come_first(int(child), first=first)
