"""The open loop: each request is sent when it is due, whatever became of those before it.

Latency counts from the intended start, so a server that stalls, or a generator that is late, makes the requests that
were due meanwhile slow; none is left out (coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from select import select
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stagetrace.load.base import Exchange, Sender

TIMEOUT: Final = "timeout"
ABANDONED: Final = "not awaited"
HOPELESS: Final = "the objective is surely broken"
_TICK_S: Final = 0.05  # how often timeouts and hopelessness are looked for
_HEAD_START_S: Final = 0.02


class Ids:
    """Trace and span ids of one run's requests: random ones with a common beginning, by which a store finds them."""

    def __init__(self) -> None:
        self.prefix = secrets.token_hex(8)

    def traceparent(self) -> str:
        """Return a header's value (W3C Trace Context) with new ids, sampled."""
        return f"00-{self.prefix}{secrets.token_hex(8)}-{secrets.token_hex(8)}-01"


@dataclass
class Run:
    """The outcomes of the sent requests: the first `sent` of the planned ones, in their order."""

    due_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]  # from the intended start; infinite if it failed
    late_s: NDArray[np.float64]
    reasons: list[str | None]  # why each failed
    trace_ids: list[str]
    stopped: str | None = None  # why not all were sent

    @property
    def sent(self) -> int:
        """Return how many were sent."""
        return len(self.due_s)

    def failures(self, start: int = 0) -> Counter[str]:
        """Return how many failed for which reason, from the `start`th on."""
        return Counter(reason for reason in self.reasons[start:] if reason is not None)


@dataclass
class Limit:
    """When to stop sending, since the result is sure: `most` requests from `first` on took longer than `limit_s`."""

    limit_s: float
    most: int
    first: int = 0
    over: int = 0


class Generator:
    """Sends planned requests once. All methods are called in the event loop's thread."""

    def __init__(
        self,
        due_s: NDArray[np.float64],
        sender: Sender,
        timeout_s: float,
        *,
        ids: Ids | None = None,
        limit: Limit | None = None,
        progress: Callable[[int], None] = lambda _sent: None,
    ) -> None:
        """Plan requests at these seconds from the start of `run`, ascending."""
        self._due: list[float] = due_s.tolist()  # for plain numbers are faster
        self._sender = sender
        self._timeout_s = timeout_s
        self._ids = ids or Ids()
        self._limit = limit
        self._progress = progress
        self._latency = [float("inf")] * len(due_s)
        self._late = [0.0] * len(due_s)
        self._reasons: list[str | None] = [None] * len(due_s)
        self._trace_ids: list[str] = []
        self._open: dict[int, Exchange] = {}  # in the order of their starts
        self._stopped: str | None = None
        self._over = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._start = 0.0

    async def run(self) -> Run:
        """Send all, await their ends and return them. No request outlives its timeout."""
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time() + _HEAD_START_S
        self._timers["send"] = self._loop.call_at(self._start + self._due[0], self._send_due)
        self._timers["tick"] = self._loop.call_later(_TICK_S, self._tick)
        try:
            await self._over.wait()
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for exchange in self._open.values():
                exchange.cancel()
        sent = len(self._trace_ids)
        return Run(
            np.asarray(self._due[:sent], dtype=np.float64),
            np.asarray(self._latency[:sent]),
            np.asarray(self._late[:sent]),
            self._reasons[:sent],
            self._trace_ids,
            self._stopped,
        )

    def stop(self, reason: str) -> None:
        """Send no more; `run` returns when the open requests have ended."""
        if self._stopped is None and len(self._trace_ids) < len(self._due):
            self._stopped = reason
            self._timers["send"].cancel()
            self._end_if_over()

    def give_up(self) -> None:
        """Wait no more: the open requests have failed."""
        for number, exchange in list(self._open.items()):
            exchange.cancel()
            self._end(number, ABANDONED)

    def _send_due(self) -> None:
        while (number := len(self._trace_ids)) < len(self._due):
            due = self._start + self._due[number]
            if due > self._loop.time():
                self._timers["send"] = self._loop.call_at(due, self._send_due)
                return
            traceparent = self._ids.traceparent()
            self._trace_ids.append(traceparent[3:35])
            self._open[number] = self._sender.send(number, traceparent, partial(self._end, number))

    def _end(self, number: int, failure: str | None) -> None:
        now = self._loop.time()
        due = self._start + self._due[number]
        sent = self._open.pop(number).sent_s
        self._late[number] = (now if sent is None else sent) - due
        self._reasons[number] = failure
        if failure is None:
            self._latency[number] = now - due
        limit = self._limit
        if limit is not None and number >= limit.first and (failure or now - due > limit.limit_s):
            limit.over += 1
        self._end_if_over()

    def _tick(self) -> None:
        """Give up requests that have timed out, and stop sending if the result is lost anyway."""
        now = self._loop.time() - self._start
        expired = list(takewhile(lambda number: now - self._due[number] >= self._timeout_s, self._open))
        for number in expired:
            self._open[number].cancel()
            self._end(number, TIMEOUT)
        limit = self._limit
        if limit is not None:
            late = takewhile(lambda number: now - self._due[number] > limit.limit_s, self._open)
            if limit.over + sum(number >= limit.first for number in late) > limit.most:
                self.stop(HOPELESS)
        self._progress(len(self._trace_ids))
        self._timers["tick"] = self._loop.call_later(_TICK_S, self._tick)

    def _end_if_over(self) -> None:
        if not self._open and (len(self._trace_ids) == len(self._due) or self._stopped is not None):
            self._over.set()


def constant(rate: float, duration_s: float) -> NDArray[np.float64]:
    """Return starts at equal distances, the first at 0."""
    return np.arange(max(1, round(rate * duration_s))) / rate


def poisson(rate: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Return the starts of a Poisson process, the same for the same seed; at least one."""
    random = np.random.default_rng(seed)
    expected = rate * duration_s
    starts = np.cumsum(random.exponential(1 / rate, int(expected + 10 * expected**0.5 + 10)))
    return starts[: max(1, int(np.searchsorted(starts, duration_s)))]


def replay(starts_unix_nano: Sequence[int], speed: float = 1.0) -> NDArray[np.float64]:
    """Return recorded starts as distances from the first, divided by `speed`; exact to the nanosecond."""
    ordered = np.sort(np.asarray(starts_unix_nano, dtype=np.int64))
    return (ordered - ordered[:1]) / 1e9 / speed


if TYPE_CHECKING:
    T = TypeVar("T")


# --- An event loop whose timers are punctual to tens of microseconds; epoll alone rounds up to whole milliseconds.


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a new loop. uvloop is not used: its timers are of whole milliseconds, too."""
    loop = asyncio.SelectorEventLoop(_selector())
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            loop.run_until_complete(_cancel_rest())
        finally:
            loop.close()


@contextmanager
def without_collecting() -> Iterator[None]:
    """Keep the garbage collector from pausing this process while it measures."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


async def _cancel_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def _selector() -> selectors.BaseSelector:
    if not hasattr(selectors, "EpollSelector"):
        return selectors.DefaultSelector()  # kqueue takes nanoseconds

    class Punctual(selectors.EpollSelector):
        """Waits for the epoll instance with select(2), whose timeout has microseconds, then asks it without waiting."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select([self.fileno()], (), (), timeout)
                timeout = 0
            return super().select(timeout)

    return Punctual()
