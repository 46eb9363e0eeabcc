"""Sends the runs of `stagetrace replay`: the request alone, among what was around it, and with routes left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stagetrace.analysis.replay_breach import (
    LEAST_REPEATS,
    MOST_ROUTES,
    One,
    Outcome,
    Situation,
    is_more_often_late,
    outcome,
)
from stagetrace.load import generator
from stagetrace.load.generator import TIMEOUT, Generator, Ids, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stagetrace.analysis.replay_breach import Sent
    from stagetrace.load.base import Sender

_PAUSE_S: Final = 0.2  # between two rounds, which would be in each other's way


@dataclass
class Result:
    """The outcomes of all runs; those that were not sent are not there."""

    alone: Outcome
    load: Outcome | None = None
    without: dict[str, Outcome] = field(default_factory=dict)  # by the route that was left out

    @property
    def is_slower(self) -> bool:
        """Return whether the request is surely late more often under load."""
        return self.load is not None and is_more_often_late(self.load, self.alone)


class Runs:
    """Sends one situation several times; `sender` makes what sends its requests in their order."""

    def __init__(
        self,
        sender: Callable[[tuple[Sent, ...]], Sender],
        timeout_s: float,
        threshold_ms: float,
        progress: Callable[[int, str, float | None], None],
    ) -> None:
        """Take how to send, and a callback for the number of requests that were sent in a run."""
        self._sender = sender
        self._timeout_s = timeout_s
        self._threshold_ms = threshold_ms
        self._progress = progress
        self._ids = Ids()

    def run(self, situation: Situation, repeats: int) -> Result:
        """Send everything and return the outcomes. Raise LoadError where the target cannot be reached."""
        return generator.run(self._main(situation, repeats))

    async def _main(self, situation: Situation, repeats: int) -> Result:
        with generator.without_collecting():
            await self._warm_up(situation)
            result = Result(await self._measure(situation.alone, repeats, "alone"))
            routes = situation.routes()
            if not routes or not result.alone.is_usable:
                return result
            result.load = await self._measure(situation, repeats, "under load")
            if result.is_slower and result.load.is_usable and len(routes) > 1:
                fewer = max(LEAST_REPEATS, -(-repeats // 2))
                for route in routes[:MOST_ROUTES]:
                    result.without[route] = await self._measure(situation.without(route), fewer, f"without {route}")
        return result

    async def _warm_up(self, situation: Situation) -> None:
        """Send one request of each route, the one itself last: the first one may load a model."""
        for one in {one.route: one for one in (*situation.requests, situation.request)}.values():
            await self._rounds((one,), generator.replay([0]), 1, "to warm up")

    async def _measure(self, situation: Situation, times: int, what: str) -> Outcome:
        """Send a situation so many times, and return what became of it."""
        due_s = generator.replay([one.start_unix_nano for one in situation.requests])
        own, place = [], situation.place
        others: list[str | None] = []
        for ran in await self._rounds(situation.requests, due_s, times, what):
            reason = ran.reasons[place]
            failure = None if reason == TIMEOUT else reason
            own.append(One(float(ran.latency_s[place]) * 1e3, float(ran.late_s[place]) * 1e3, failure))
            others += ran.reasons[:place] + ran.reasons[place + 1 :]
        return outcome(own, self._threshold_ms, others)

    async def _rounds(self, requests: tuple[Sent, ...], due_s: NDArray[np.float64], times: int, what: str) -> list[Run]:
        sender = self._sender(requests)
        await sender.open()
        found: list[Run] = []
        count = times * len(requests)

        def progress(sent: int) -> None:
            total = len(found) * len(requests) + sent
            self._progress(total, f"requests {what}", total / count)

        try:
            for number in range(times):
                if number:
                    await asyncio.sleep(_PAUSE_S)
                made = Generator(due_s, sender, self._timeout_s, ids=self._ids, progress=progress)
                found.append(await made.run())
        finally:
            await sender.close()
        return found
