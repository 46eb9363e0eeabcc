"""The limits of one HTTP port: connections, the time that clients may take, threads."""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from stagetrace.backend.refusal import ABANDONED, BUSY, Refused

if TYPE_CHECKING:
    from concurrent.futures import Future

    from starlette.requests import Request

# --- The connections of one HTTP port: how many there may be, how long their clients may take, and which gives way.
#
# Nothing here knows HTTP. A connection either is in work, or it awaits something of its client.

_UNREAD: Final = 256 << 20  # bytes of all responses of a port that their clients have yet to read


class Awaited(enum.Enum):
    """What a connection awaits of its client."""

    FIRST_REQUEST = enum.auto()  # from connecting to the end of the headers, TLS included
    NEXT_REQUEST = enum.auto()  # up to its first byte
    HEADERS = enum.auto()  # of a request after the first
    BODY = enum.auto()
    REST = enum.auto()  # of a request that has its response already
    READING = enum.auto()  # of a response


class Closed(enum.Enum):
    """Why the port closes a connection that its client did not close. The value is the label of a counter."""

    CROWDED = "crowded"
    REFUSED = "refused"
    SLOW = "slow"
    UNREAD = "unread"
    MALFORMED = "malformed"
    HANDSHAKE = "handshake"
    DESCRIPTORS = "descriptors"


@dataclass(frozen=True)
class Deadlines:
    """Seconds that a client may take. The receiver has its own for bodies."""

    headers: float = 10
    keep_alive: float = 75
    reading: float = 30  # without reading any of a response

    def of(self, awaited: Awaited) -> float:
        """Return the seconds for one thing that is awaited."""
        if awaited is Awaited.BODY:
            return math.inf
        return {Awaited.NEXT_REQUEST: self.keep_alive, Awaited.READING: self.reading}.get(awaited, self.headers)


DEADLINES: Final = Deadlines()


@dataclass(eq=False)
class Place:
    """The place of one connection: `drop` closes the connection at once, `unread` returns the bytes yet to be sent."""

    drop: Callable[[], None]
    unread: Callable[[], int] = lambda: 0
    awaited: Awaited | None = None
    deadline: float = field(default=math.inf)
    unread_before: int = 0


class Connections:
    """All connections of one port; used from its event loop alone.

    Once they are `most`, the one that has awaited its client longest gives way to a new one.
    """

    def __init__(self, most: int, deadlines: Deadlines, closed: Callable[[Closed], None]) -> None:
        self.closed = closed
        self._most = most
        self._deadlines = deadlines
        self._places: set[Place] = set()
        self._waiting: dict[Place, None] = {}  # the longest wait first

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._places)

    def add(self, place: Place) -> None:
        """Take a new connection."""
        self._places.add(place)
        self.wait(place, Awaited.FIRST_REQUEST)

    def wait(self, place: Place, awaited: Awaited) -> None:
        """Set what a connection awaits from now on."""
        if place not in self._places:
            return
        self.work(place)
        place.awaited = awaited
        place.deadline = time.monotonic() + self._deadlines.of(awaited)
        place.unread_before = place.unread()
        self._waiting[place] = None
        if awaited is Awaited.READING:
            self._bound_unread()

    def work(self, place: Place) -> None:
        """Keep a connection from giving way: it awaits nothing of its client."""
        self._waiting.pop(place, None)
        place.awaited = None
        place.deadline = math.inf

    def discard(self, place: Place) -> None:
        """Forget a connection."""
        self.work(place)
        self._places.discard(place)

    def has_room(self) -> bool:
        """Return whether one more connection may be added, after one gave way if need be."""
        return len(self._places) < self._most or self.give_way(Closed.CROWDED)

    def give_way(self, why: Closed) -> bool:
        """Close the connection that has waited longest; return whether there is one."""
        longest = next(iter(self._waiting), None)
        if longest is not None:
            self._close(longest, why)
        return longest is not None

    def expire(self) -> None:
        """Close the connections whose clients have taken too long."""
        now = time.monotonic()
        for place in [one for one in self._places if one.deadline < now]:
            unread = place.unread()
            if place.awaited is Awaited.READING and unread < place.unread_before:
                place.unread_before = unread
                place.deadline = now + self._deadlines.reading
            else:
                self._close(place, Closed.SLOW)

    def _bound_unread(self) -> None:
        """Close those that read slowest while all unread responses together are too large."""
        reading = [place for place in self._places if place.awaited is Awaited.READING]
        reading.sort(key=lambda place: place.deadline)
        unread = sum(place.unread() for place in reading)
        for place in reading[:-1]:
            if unread > _UNREAD:
                unread -= place.unread()
                self._close(place, Closed.UNREAD)

    def _close(self, place: Place, why: Closed) -> None:
        self.discard(place)
        self.closed(why)
        place.drop()


# --- The threads of one HTTP port: requests wait for one as long as there are few, and their clients are there.

T = TypeVar("T")
_AGAIN_S: Final = 0.05  # an interrupt before a query begins, or between two, ends neither


class Threads(ThreadPoolExecutor):
    """Runs the work of `most` requests, those that wait for a thread included. Used from the event loop."""

    def __init__(self, count: int, most: int) -> None:
        super().__init__(count)
        self._most = most
        self._requests = 0

    async def run(self, request: Request, work: Callable[[], T], abandon: Callable[[], None] | None = None) -> T:
        """Return what `work` does, in a thread. Raise Refused where too many wait, or the client has disconnected.

        `abandon` is called, until the work ends, where the client disconnects while it is being done.
        """
        if self._requests >= self._most:
            raise Refused(BUSY, f"{self._most} requests are being answered at this moment; send this one again")
        self._requests += 1
        future = self.submit(work)
        watching = asyncio.create_task(_watch(request, future, abandon))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if watching.done():
                raise Refused(ABANDONED, "the client disconnected") from None
            raise
        finally:
            watching.cancel()
            self._requests -= 1


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _watch(request: Request, future: Future[T], abandon: Callable[[], None] | None) -> None:
    await wait_for_disconnect(request)
    if future.cancel() or abandon is None:
        return
    while not future.done():
        abandon()
        await asyncio.sleep(_AGAIN_S)
