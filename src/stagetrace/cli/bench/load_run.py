"""Runs the load of `stagetrace bench`: one rate, several, or a search; stops gently on Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis.bench import CONFIDENCE, Found, Search, Sends, Step, Tried, least_over, needed_queries, step
from stagetrace.cli.registry import UsageError
from stagetrace.errors import StoreError
from stagetrace.load import generator
from stagetrace.load.generator import HOPELESS, Generator, Ids, Limit, Run
from stagetrace.semconv import QUEUE_REASON
from stagetrace.store import open_store
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stagetrace.analysis.bench_objective import Objective
    from stagetrace.load.base import Sender

INTERRUPTED: Final = "interrupted"
_PERCENTILE: Final = 0.99  # the percentile to measure where no objective names one
_LEAST_S, _MOST_S = 10.0, 120.0
_ALLOWED: Final = 2  # a run is long enough for so many requests over the limit
_SHORT_S: Final = 2.0  # of the steps by which --find gets near
_SHORT_LEAST: Final = 30
_PAUSE_S: Final = 0.5
_LATE_STEPS: Final = 3
_MOST_PLANNED: Final = 2_000_000
_GRACE_S: Final = 5.0
_BUSY: Final = 0.8  # of a CPU core


@dataclass(frozen=True)
class RateRun:
    """One rate: its result, and the requests themselves, those of the warm-up excluded."""

    step: Step
    run: Run
    first: int  # how many were of the warm-up
    full: bool = True
    cpu_share: float = 0.0  # of a core, that this process used meanwhile

    @property
    def stopped_early(self) -> bool:
        """Return whether sending ended once the objective was surely broken: quantiles are of the first requests."""
        return self.run.stopped == HOPELESS

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Return the latencies in ms, infinite where a request failed."""
        return self.run.latency_s[self.first :] * 1e3

    @property
    def late_ms(self) -> NDArray[np.float64]:
        """Return by how much each was sent late, in ms."""
        return self.run.late_s[self.first :] * 1e3

    @property
    def trace_ids(self) -> list[str]:
        """Return the trace ids of the requests."""
        return self.run.trace_ids[self.first :]


@dataclass
class Result:
    """All that was measured."""

    ids: Ids = field(default_factory=Ids)
    steps: list[RateRun] = field(default_factory=list)
    found: Found | None = None
    cut: str | None = None  # why there is less than was asked for
    since_unix_nano: int = 0
    until_unix_nano: int = 0


class Bench:
    """Runs the load that the options describe; `due_s` are the recorded starts of a replay."""

    def __init__(
        self,
        args: argparse.Namespace,
        sender: Sender,
        progress: Callable[[int, str, float | None], None],
        due_s: NDArray[np.float64] | None = None,
    ) -> None:
        """Take the options, the sender, and a callback for the number of requests that were sent at a rate."""
        self._args = args
        self._sender = sender
        self._progress = progress
        self._replayed = due_s
        self._objective: Objective | None = args.find or args.objective
        self._percentile = self._objective.percentile if self._objective is not None else _PERCENTILE
        self._generator: Generator | None = None
        self._result = Result()

    def run(self, rate: float) -> Result:
        """Send everything and return the measurement. Raise LoadError where the target cannot be reached."""
        return generator.run(self._main(rate))

    async def _main(self, rate: float) -> Result:
        await self._sender.open()
        result = self._result
        result.since_unix_nano = time.time_ns()
        try:
            with self._stopping(), generator.without_collecting():
                if self._args.find is not None:
                    await self._find(rate)
                elif self._replayed is not None:
                    await self._measure(rate_of(self._replayed), self._replayed, warmup_s=0.0)
                else:
                    for number, one in enumerate(self._args.rates or [rate]):
                        if number:
                            await asyncio.sleep(_PAUSE_S)
                        if result.cut is None:
                            await self._measure(one, self._planned(one, self._duration_s(one)))
        finally:
            await self._sender.close()
        result.until_unix_nano = time.time_ns()
        return result

    def _duration_s(self, rate: float) -> float:
        """Return how long to send: as asked, or as long as the percentile needs, within bounds."""
        given: float | None = self._args.duration
        if given is not None:
            return given
        needed = needed_queries(self._percentile, CONFIDENCE, _ALLOWED) / rate
        return min(_MOST_S, max(_LEAST_S if self._args.find is None else _SHORT_S, needed * 1.05))

    def _planned(self, rate: float, duration_s: float) -> NDArray[np.float64]:
        if rate * duration_s > _MOST_PLANNED:
            raise UsageError(
                f"{rate * duration_s:,.0f} requests are more than bench sends at one rate ({_MOST_PLANNED:,})\n"
                "give a lower --rate, or a shorter --duration"
            )
        if self._args.arrivals == "poisson":
            return generator.poisson(rate, duration_s, self._args.seed + len(self._result.steps))
        return generator.constant(rate, duration_s)

    async def _measure(
        self, rate: float, due_s: NDArray[np.float64], *, warmup_s: float | None = None, full: bool = True
    ) -> RateRun:
        """Send at one rate, after a warm-up at it, and record the result."""
        import numpy as np

        warmup_s = self._args.warmup if warmup_s is None else warmup_s
        before = self._planned(rate, warmup_s) if warmup_s else due_s[:0]
        first = len(before)
        objective, limit = self._objective, None
        if objective is not None and (self._args.find is not None or self._args.rates):
            most = least_over(len(due_s), objective.percentile) - 1
            limit = Limit(objective.limit_ms / 1e3, most, first)
        count, what = first + len(due_s), f"requests at {rate:g}/s"
        self._generator = Generator(
            np.concatenate([before, due_s + (warmup_s if first else 0.0)]),
            self._sender,
            self._args.timeout,
            ids=self._result.ids,
            limit=limit,
            progress=lambda sent: self._progress(sent, what, sent / count),
        )
        cpu, clock = time.process_time(), time.perf_counter()
        ran = await self._generator.run()
        share = (time.process_time() - cpu) / max(1e-9, time.perf_counter() - clock)
        sends = Sends(ran.due_s[first:], ran.latency_s[first:] * 1e3, ran.late_s[first:] * 1e3, ran.failures(first))
        made = RateRun(step(sends, rate, objective, self._percentile), ran, first, full, share)
        self._result.steps.append(made)
        if ran.stopped == INTERRUPTED:
            self._result.cut = f"interrupted after {len(made.trace_ids)} of {len(due_s)} requests at {rate:g}/s"
        return made

    async def _find(self, start: float) -> None:
        """Try rates until the highest that keeps the objective is known, or the time is up."""
        search = Search(self._percentile, start, most=self._args.max_rate)
        tried: list[Tried] = []
        late = 0
        result, end = self._result, time.monotonic() + self._args.max_time
        while result.cut is None and (wanted := search.next_rate(tried)) is not None:
            duration_s = self._duration_s(wanted.rate)
            if not wanted.full:
                duration_s = min(duration_s, max(_SHORT_S, _SHORT_LEAST / wanted.rate))
            if tried and time.monotonic() + duration_s + self._args.warmup > end:
                result.cut = f"the search was ended after {self._args.max_time:g} s: give it more by --max-time"
                break
            made = await self._measure(wanted.rate, self._planned(wanted.rate, duration_s), full=wanted.full)
            one = made.step
            if one.is_late:  # a pause of this machine, if it does not come again
                late += 1
                if late == _LATE_STEPS:
                    result.cut = f"the load generator was late {late} times, last at {wanted.rate:.4g} requests/s"
                await asyncio.sleep(_PAUSE_S)
                continue
            # A short step is too short to show that the objective is kept, and one of few requests over is enough.
            verdict, sure = one.verdict or "", one.sure or ""
            tried.append(Tried(wanted.rate, one.requests, one.over or 0, verdict, sure, wanted.full, one.is_growing))
            await asyncio.sleep(_PAUSE_S)
        result.found = search.result(tried)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Let the first Ctrl-C end the sending, and the second end all."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        task, before = asyncio.current_task(), signal.getsignal(signal.SIGINT)
        own = asyncio.get_running_loop()

        def stop() -> None:
            if self._result.cut == INTERRUPTED and task is not None:
                task.cancel()
            self._result.cut = INTERRUPTED
            if self._generator is not None:
                self._generator.stop(INTERRUPTED)
                own.call_later(_GRACE_S, self._generator.give_up)

        own.add_signal_handler(signal.SIGINT, stop)
        try:
            yield
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            own.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)


def rate_of(due_s: Sequence[float] | Any) -> float:
    """Return the mean rate of recorded starts."""
    span = float(due_s[-1] - due_s[0])
    return (len(due_s) - 1) / span if span > 0 else float(len(due_s))


def busy(steps: Sequence[RateRun]) -> str | None:
    """Return a warning where this process used most of a CPU core, and so may have been the bottleneck."""
    most = max((one.cpu_share for one in steps), default=0.0)
    if most < _BUSY:
        return None
    return f"the load generator used {most:.0%} of a CPU core: latencies may be its own; give a lower rate"


# --- Finds the server's spans of the requests of a run in a store, by their trace ids, and waits for them in bounds.

_MOST: Final = 100_000  # requests that are joined
_BESIDE_NS: Final = 60 * 10**9  # clocks of the server may differ
_PAUSES_S: Final = (0.3, 0.5, 1.0, 1.5, 2.0)
_SILENT_S: Final = 7.0  # OpenTelemetry's processors send every 5 s
_LOOKED_AT: Final = 100  # traces, for what their queue stages waited for


@dataclass(frozen=True)
class ServerSide:
    """The server's side: by trace id how long its entry span was and its stages, in ms; `note`: what is missing."""

    found: Mapping[str, tuple[float, Mapping[str, float]]] = field(default_factory=dict)
    note: str | None = None


def join(
    url: str | None, result: Result, wait_s: float, progress: Callable[[int, str, float | None], None]
) -> ServerSide:
    """Return the spans of the requests, once the store has all of them or no more arrive."""
    if url is None:
        return ServerSide(
            note="no store was named, so that the server's stages are not known: --store, or `stagetrace up`"
        )
    asked = [one for step in result.steps for one in step.trace_ids]
    wanted = Selection(result.since_unix_nano - _BESIDE_NS, result.until_unix_nano + _BESIDE_NS)
    found: dict[str, tuple[float, Mapping[str, float]]] = {}
    end, changed, pause = time.monotonic() + wait_s, time.monotonic(), iter(_PAUSES_S)
    try:
        while True:
            before = len(found)
            found = _read_spans(url, wanted, result.ids.prefix)
            own = found.keys() & set(asked)
            now = time.monotonic()
            if len(found) > before:
                changed = now
            if len(own) >= min(len(asked), _MOST) or now > end or now - changed > _SILENT_S:
                break
            progress(len(own), "requests found in the store", len(own) / max(1, len(asked)))
            time.sleep(min(next(pause, _PAUSES_S[-1]), max(0.05, end - now)))
    except StoreError as error:
        return ServerSide(note=f"the server's stages are not known: {error}")
    kept = {one: found[one] for one in own}
    return ServerSide(kept, _note(len(kept), len(asked), url))


def _read_spans(url: str, wanted: Selection, prefix: str) -> dict[str, tuple[float, Mapping[str, float]]]:
    with open_store(url) as reader, reader.relations(wanted) as relations:
        rows = relations.reduce("own_requests", prefix=prefix, most=_MOST)
    found: dict[str, tuple[float, Mapping[str, float]]] = {}
    for row in rows:  # by start: of several services the one that was called by us is the first
        stages = dict(zip(row["stage_names"] or (), row["stages_ms"] or (), strict=True))
        found.setdefault(row["trace_id"], (float(row["duration_ms"]), stages))
    return found


def _note(found: int, asked: int, url: str) -> str | None:
    if not found:
        return (
            f"the store {url} got no spans of these requests: is the service recorded (STAGETRACE=1), and does it send"
            " its spans there?"
        )
    if found < asked:
        return f"stages are of {found:,} of {asked:,} requests: the store has no spans of the others (lost, or late)"
    return None


def queue_reasons(url: str, trace_ids: Sequence[str]) -> dict[str, float]:
    """Return reason -> ms of the queue stages of some of these traces, most first; empty where unknown."""
    waits: Counter[str] = Counter()  # ns
    try:
        with open_store(url) as reader:
            step = max(1, len(trace_ids) // _LOOKED_AT)
            for trace in reader.traces(trace_ids[::step][:_LOOKED_AT]):
                for span in trace.spans:
                    reason = span.attributes.get(QUEUE_REASON)
                    if isinstance(reason, str):
                        waits[reason] += max(0, span.duration_ns)
    except StoreError:
        return {}
    return {reason: ns / 1e6 for reason, ns in waits.most_common()}
