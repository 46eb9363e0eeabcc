"""Work of a request in a thread of a pool: the wait for the thread, and how the thread's time divides."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import report
from stagetrace.recording.working import put_down, take_up, this_worker
from stagetrace.semconv import QUEUE
from stagetrace.sources import thread_cpu
from stagetrace.sources.stacks import WORKER_THREADS
from stagetrace.sources.thread_cpu import AT, DIVIDED_NS, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.recording.record import RequestRecord
    from stagetrace.sources.thread_cpu import CpuSample

WHERE = "stagetrace.patches.anyio"  # the patch that is switched off where this fails


class PoolTask:
    """What a request gives to a pool, as the pool's thread calls it. Begins to wait as it is made."""

    __slots__ = ("_asked", "_ended", "_function", "_record", "_roomy", "_waits")

    def __init__(
        self, record: RequestRecord, function: Callable[..., Any], attributes: Mapping[str, Any], roomy: Any
    ) -> None:
        """Wait with these attributes; `roomy` is the pool's limiter if it has a token left, else None."""
        self._record = record
        self._function = function
        self._roomy = roomy
        self._ended = 0
        self._waits = [QUEUE]  # removed by what ends the wait: the thread, or the loop if no thread took the task up
        self._asked = time_ns()
        if roomy is None:
            record.pools = (*record.pools, WORKER_THREADS)
        record.enter(QUEUE, attributes, self._asked)

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        first = worker = before = None
        try:
            first = self._begin()
            worker = this_worker()
            before = take_up(self._record, worker)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report(WHERE, error)
        try:
            return self._function(*args)
        finally:
            try:
                if worker is not None:
                    put_down(worker, before)
                self._ended = now = time_ns()
                thread_cpu.become_idle(now)
                if first is not None and now - first[AT] >= DIVIDED_NS:
                    self._record.divide(first)
            except Exception as error:  # noqa: BLE001
                report(WHERE, error)

    def _begin(self) -> CpuSample | None:
        """End the wait; return the thread's CPU sample."""
        now = time_ns()
        self._leave(now)
        if now - self._asked < DIVIDED_NS:
            return sample(now)
        return wake_up(self._record, self._asked, now, self._roomy)

    def _leave(self, now: int) -> None:
        if self._waits:
            try:
                waited = self._waits.pop()
            except IndexError:  # the other thread has ended the wait
                return
            self._record.leave(waited, now)
            if self._roomy is None:
                self._record.leave_pool(WORKER_THREADS)

    def end(self) -> None:
        """Take the request back to the event loop. Never raises."""
        try:
            now = time_ns()
            self._leave(now)
            if self._ended and now - self._ended >= DIVIDED_NS:
                self._record.add_wakeup(self._ended, now)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)


def wake_up(record: RequestRecord, asked: int, now: int, roomy: Any) -> CpuSample | None:
    """Return the CPU sample of the thread; note for how long it was free and could not run.

    `roomy` is the pool's limiter if it had a token left when the thread was asked for.
    """
    previous = thread_cpu.last_sample()
    first = sample()
    if first is not None:
        had_room = roomy is not None and roomy.available_tokens > 0  # else other tasks were queued before it
        record.add_wakeup(
            asked if had_room else max(asked, thread_cpu.idle_since()), now, thread_cpu.waited_for_cpu(previous, first)
        )
    return first
