"""Hand spans to a processor at a steady rate, and measure how long its threads keep this one from running.

The spans are those of real requests, recorded first where `--hand-on` names the processor's method, and handed over
again and again. This thread wakes every PERIOD_S; the delay of a wake is what an event loop in its place would see. It
also reads, each time, the CPU time of the other threads since the last wake: they cannot have held the interpreter for
longer at a stretch, however late this thread was for other reasons. The process prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import json
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.asgi import PATH, call, lifespan, load

if TYPE_CHECKING:
    from collections.abc import Callable

    Recorded = list[tuple[Callable[[], object], int]]  # a call that hands on spans, and how many

REQUESTS = 256
PERIOD_S = 0.0002
WARM_UP_S = 4.0  # stagetrace loads its exporter in it, with the first batch
LONG_S = 0.0005


def record(where: str) -> Recorded:
    """Return a list that fills with the calls of `module:Class.method` that hand spans over."""
    module, _, name = where.partition(":")
    class_name, _, method = name.partition(".")
    cls = getattr(importlib.import_module(module), class_name)
    original = getattr(cls, method)
    recorded: Recorded = []

    @functools.wraps(original)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        # stagetrace's takes many spans at once with their number, the SDK's takes one.
        spans = next((argument for argument in args if isinstance(argument, int)), 1)
        recorded.append((functools.partial(original, self, *args, **kwargs), spans))
        return original(self, *args, **kwargs)

    setattr(cls, method, noted)
    return recorded


class Probe:
    """Hand spans over, and measure wakes. All times in seconds."""

    def __init__(self, calls: Recorded, spans_per_s: float) -> None:
        self._calls = calls
        self._rate = spans_per_s
        self.spans = 0
        self.late = array("d")
        self.kept = array("d")

    def run(self, seconds: float) -> None:
        """Run for `seconds`. A late wake stands for all the wakes that it missed."""
        self.late, self.kept = array("d"), array("d")
        before = self.spans
        clocks = [time.pthread_getcpuclockid(thread.ident) for thread in _others() if thread.ident]
        started, at, turn = time.perf_counter(), 0, 0
        used = sum(map(time.clock_gettime, clocks))
        while at * PERIOD_S < seconds:
            at += 1
            wait = started + at * PERIOD_S - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            now, then = time.perf_counter() - started, used
            used = sum(map(time.clock_gettime, clocks))
            self.kept.append(used - then)
            self.late.append(now - at * PERIOD_S)
            while (at + 1) * PERIOD_S < now:
                at += 1
                self.late.append(now - at * PERIOD_S)
            while self._calls and self.spans - before < now * self._rate:
                hand_on, spans = self._calls[turn % len(self._calls)]
                hand_on()
                self.spans += spans
                turn += 1


def _others() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.current_thread()]


def figures(values: array[float]) -> dict[str, float]:
    """Return microseconds by quantile, and the share that is longer than LONG_S."""
    ordered = sorted(values)
    shown = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    result = {name: ordered[int(share * len(ordered))] * 1e6 for name, share in shown.items()}
    return {**result, "max": ordered[-1] * 1e6, "long": sum(value > LONG_S for value in ordered) / len(ordered)}


async def measure(app: Any, where: str, spans_per_s: float, seconds: float) -> dict[str, Any]:
    """Record some requests, then hand their spans over from this thread, which blocks the event loop meanwhile."""
    recorded = record(where) if where else []
    async with lifespan(app):
        await call(app, [PATH] * REQUESTS)
        if where and not recorded:
            raise SystemExit(f"no spans were handed on to {where}")
        probe = Probe(recorded.copy(), spans_per_s)
        probe.run(WARM_UP_S)
        handed, threads, since = probe.spans, _others(), time.monotonic()
        probe.run(seconds)
        return {
            "spans_per_s": (probe.spans - handed) / seconds,
            "threads": {thread.native_id: thread.name for thread in threads},
            "between_s": (since, time.monotonic()),
            "late_us": figures(probe.late),
            "kept_us": figures(probe.kept),
            "cpu_us_per_span": sum(probe.kept) * 1e6 / max(1, probe.spans - handed),
        }


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: STAGETRACE=1 python benchmarks/probe.py "
        "--hand-on stagetrace.otlp.export.batch_processor:EncodingSpanProcessor.put",
    )
    parser.add_argument("--app", default="app_staged:app", help="module:name, a module of this folder")
    parser.add_argument("--hand-on", default="", help="module:Class.method that takes ended spans; none: hand on none")
    parser.add_argument("--spans", type=float, default=5000, help="a second")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    json.dump(asyncio.run(measure(load(args.app), args.hand_on, args.spans, args.seconds)), sys.stdout)


if __name__ == "__main__":
    main()
