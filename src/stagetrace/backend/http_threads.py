"""The threads of one HTTP port: requests wait for one as long as there are few, and their clients are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from stagetrace.backend.refusal import ABANDONED, BUSY, Refused

if TYPE_CHECKING:
    from concurrent.futures import Future

    from starlette.requests import Request

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


async def disconnected(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _watch(request: Request, future: Future[T], abandon: Callable[[], None] | None) -> None:
    await disconnected(request)
    if future.cancel() or abandon is None:
        return
    while not future.done():
        abandon()
        await asyncio.sleep(_AGAIN_S)
