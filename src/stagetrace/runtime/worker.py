"""The background thread of this process: it runs jobs that may take long or hang, one after another."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from stagetrace.real_queue import Empty, SimpleQueue
from stagetrace.real_threads import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.real_queue import SimpleQueue as Queue

IDLE_EVERY_S = 2.0


class Worker:
    """Runs jobs in one thread, and `when_idle` after each `idle_every_s` without a job.

    The first job starts the thread; a forked child starts its own. That is to be before the interpreter ends: from 3.12
    on no thread can be started then. No lock guards the state: two threads that race start a thread too many, which
    ends as soon as its queue is empty.
    """

    def __init__(self, when_idle: Callable[[], None]) -> None:
        self._when_idle = when_idle
        self._jobs: Queue[Callable[[], None]] | None = None
        self._pid = 0  # the process that `_jobs` belongs to
        self.idle_every_s = IDLE_EVERY_S
        self._may_hang = False  # whether a job of `run_blocking` runs

    def put(self, job: Callable[[], None]) -> None:
        """Run `job` in the thread. Raises RuntimeError where no thread can be started."""
        self._running().put(job)

    def put_if_running(self, *jobs: Callable[[], None]) -> bool:
        """Run `jobs` if this process has the thread, and return whether it has; starts none, takes no lock."""
        if self._jobs is None or self._pid != os.getpid():
            return False
        for job in jobs:
            self._jobs.put(job)
        return True

    def run_blocking(self, function: Callable[[], None]) -> None:
        """Call `function`, in the thread: while it runs (a disk may hang), the next job gets a new thread."""
        self._may_hang = True
        function()
        self._may_hang = False

    def _running(self) -> Queue[Callable[[], None]]:
        """Return the queue of a thread that is not blocked."""
        is_forked = self._pid != os.getpid()
        if self._jobs is None or is_forked or self._may_hang:
            before, self._may_hang = self._jobs, False
            self._jobs, self._pid = SimpleQueue(), os.getpid()
            try:
                start(partial(self._work, self._jobs), "stagetrace-flush")
            except RuntimeError:
                if before is None or is_forked:
                    raise
                self._jobs = before
            except BaseException:  # of a signal's handler: perhaps there is no thread at that queue
                self._jobs = None if is_forked else before
                raise
        return self._jobs

    def _work(self, jobs: Queue[Callable[[], None]]) -> None:
        while jobs is self._jobs or not jobs.empty():
            try:
                job = jobs.get(timeout=self.idle_every_s)
            except Empty:
                job = self._when_idle
            job()
