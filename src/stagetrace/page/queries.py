"""How parts of the page query the store: by readers that are kept, each within a time limit, once for all viewers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.backend.http_limits import wait_for_disconnect
from stagetrace.backend.refusal import ABANDONED, BUSY, Refused
from stagetrace.errors import StagetraceError
from stagetrace.store import database

if TYPE_CHECKING:
    from starlette.requests import Request

    from stagetrace.store.base import Reader


# --- Readers of the store, each used by one thread at a time and then kept for the next.


class Readers:
    """Thread-safe. `_lock` guards `_busy`."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._open = open_reader
        self._idle: SimpleQueue[Reader] = SimpleQueue()
        self._lock = threading.Lock()
        self._busy: dict[int, Reader] = {}  # thread -> what it asks

    @contextmanager
    def one(self) -> Iterator[Reader]:
        """Yield a reader for exclusive use; after an error it is closed, not kept."""
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = self._open()
        thread = threading.get_ident()
        with self._lock:
            self._busy[thread] = reader
        release = reader.close
        try:
            yield reader
            release = partial(self._idle.put, reader)
        finally:
            with self._lock:
                del self._busy[thread]
            release()

    def interrupt(self) -> None:
        """Have the questions that are being asked fail, which are the last ones."""
        with self._lock:
            for reader in self._busy.values():
                reader.interrupt()
            database.interrupt(set(self._busy))

    def close(self) -> None:
        """Close the idle readers."""
        while not self._idle.empty():
            self._idle.get().close()


# --- A limit of time for one part of the page: its queries are interrupted, since a browser would not wait for ever.

# --- Parts, made in a few threads and shared: a hundred viewers of a board are one query, and cost one thread.

_AGAIN_S: Final = 0.05  # an interrupt between two queries ends neither


class TookTooLong(StagetraceError):  # noqa: N818 -- what happened
    """The limit is over."""


@contextmanager
def limited(reader: Reader, seconds: float) -> Iterator[None]:
    """Limit the time for which this thread asks the reader. Raise TookTooLong where that was not enough.

    The reader is only closed then.
    """
    over, late = threading.Event(), threading.Event()
    thread = threading.get_ident()

    def watch() -> None:
        if not over.wait(seconds):
            late.set()
            while not over.wait(_AGAIN_S):
                database.interrupt({thread})
                with suppress(Exception):  # it was closed meanwhile
                    reader.interrupt()

    watching = threading.Thread(target=watch, name="stagetrace-page-limit", daemon=True)
    watching.start()
    try:
        yield
    except Exception:
        if late.is_set():
            message = f"the store needs more than {seconds:g} s for this, which is the limit of the page"
            raise TookTooLong(f"{message}\nselect less time or one service, or ask on a command line") from None
        raise
    finally:
        over.set()
        watching.join()


KEPT_S: Final = 2.0  # at least; and as long as it took to make
THREADS: Final = 3  # that ask the store at one time
APART: Final = 3  # besides, for parts that may take long: they hold no other
_MOST: Final = 256
_BYTES: Final = 32 << 20
_OK: Final = 200


class Made(NamedTuple):
    """A part as it is sent, and how long the store took for it."""

    body: bytes
    status: int
    took_s: float
    type: str = "text/html"
    file: str | None = None  # as which a browser saves it
    is_old: bool = False  # it is being made anew


@dataclass(eq=False)
class _Flight:
    """A part that is being made, and for how many viewers."""

    work: Future[Made]
    made: asyncio.Future[Made]
    viewers: int = 0


class Cache:
    """Used from the event loop alone. Who asks for a part while it is made waits for it, without a thread."""

    def __init__(self, viewers: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Let at most so many `viewers` wait at one time."""
        self._viewers = viewers
        self._clock = clock
        self._pool = ThreadPoolExecutor(THREADS, "stagetrace-page")
        self._apart = ThreadPoolExecutor(APART, "stagetrace-page-apart")
        self._waiting = 0
        self._flights: dict[str, _Flight] = {}
        self._kept: OrderedDict[str, tuple[float, Made]] = OrderedDict()  # until when; the oldest first
        self._bytes = 0
        self.is_closed = False

    async def get(
        self, request: Request, key: str, make: Callable[[], Made], *, apart: bool = False, old: bool = False
    ) -> Made:
        """Return the part of this key, made in a thread if it is not there: with `apart`, in one for long ones.

        With `old`, return it as it was, if it is there, and have it made anew. Raise Refused where too many wait, or
        the client has disconnected. `make` raises nothing.
        """
        until, kept = self._kept.get(key, (0.0, None))
        if kept is not None and self._clock() < until:
            return kept
        if kept is not None and old:
            if key not in self._flights:
                self._begin(key, make, apart=apart)
            return kept._replace(is_old=True)
        if self._waiting >= self._viewers:
            raise Refused(BUSY, f"{self._viewers} parts of pages are being made at this moment\nask again in a moment")
        flight = self._flights.get(key) or self._begin(key, make, apart=apart)
        flight.viewers += 1
        self._waiting += 1
        leaving = asyncio.create_task(wait_for_disconnect(request))
        try:
            await asyncio.wait((flight.made, leaving), return_when=asyncio.FIRST_COMPLETED)
            if flight.made.done():
                return flight.made.result()
            raise Refused(ABANDONED, "the client disconnected")
        finally:
            leaving.cancel()
            self._waiting -= 1
            flight.viewers -= 1
            if not flight.viewers and flight.work.cancel():  # nobody waits for it, and it has not begun
                self._flights.pop(key, None)

    def forget(self, part: str) -> None:
        """Drop what is kept of a part: it is no longer true."""
        for key in [one for one in self._kept if one.startswith(part)]:
            _, dropped = self._kept.pop(key)
            self._bytes -= len(dropped.body)

    def close(self, interrupt: Callable[[], None], within_s: float) -> bool:
        """Have what is being made end; return whether it did. `interrupt` has the questions of its threads fail."""
        self.is_closed = True
        for pool in (self._pool, self._apart):
            pool.shutdown(wait=False, cancel_futures=True)
        running = [flight.work for flight in self._flights.values()]
        end = time.monotonic() + within_s
        while (is_running := not all(work.done() for work in running)) and time.monotonic() < end:
            interrupt()  # again and again: another question may begin
            time.sleep(_AGAIN_S)
        return not is_running

    def _begin(self, key: str, make: Callable[[], Made], *, apart: bool) -> _Flight:
        loop = asyncio.get_running_loop()
        pool = self._apart if apart else self._pool
        flight = self._flights[key] = _Flight(pool.submit(make), loop.create_future())

        def landed(_work: Future[Made]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._land, key, flight)

        flight.work.add_done_callback(landed)
        return flight

    def _land(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.work.cancelled():
            flight.made.cancel()
        else:
            flight.made.set_result(flight.work.result())
            self._keep(key, flight.work.result())

    def _keep(self, key: str, made: Made) -> None:
        """Keep a part that is no error and not so large that it would displace many; drop the oldest beyond limits."""
        _, old = self._kept.pop(key, (0.0, None))
        self._bytes -= 0 if old is None else len(old.body)
        if made.status == _OK and len(made.body) <= _BYTES // 4:
            self._kept[key] = (self._clock() + max(KEPT_S, made.took_s), made)
            self._bytes += len(made.body)
        while len(self._kept) > _MOST or self._bytes > _BYTES:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= len(dropped.body)
