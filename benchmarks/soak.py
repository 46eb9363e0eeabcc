"""Send very many requests through one traced process; report whether it grows, or leaks threads or descriptors.

The application is called in process, as in `inprocess_cost.py`, by one event loop or by several in threads of their
own, and its spans go to a real receiver. Resident memory, threads and descriptors are read while no request is in
progress: after the first 100,000 requests (a tenth, if there are less than a million), and nine more times to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import itertools
import json
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.asgi import call, lifespan, load
from benchmarks.inprocess_cost import staged
from benchmarks.measure import (
    CORES,
    SETTLE_S,
    STAGETRACE,
    STAGETRACE_SAMPLED,
    STOCK,
    UNTRACED,
    Receiver,
    Table,
    Variant,
    parser,
    progress,
    run,
    run_receiver,
    show,
    status_kb,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIANTS = {
    one.name: one
    for one in (UNTRACED, STOCK, staged(STAGETRACE, "stagetrace"), staged(STAGETRACE_SAMPLED, "stagetrace"))
}
FIRST = 100_000
READINGS = 10
TAKE_EVERY_S = 1.0
CHILD = "--in-process"
_trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # not in every C library
PATH = "/v0/score/model-0"
HTTP = "http/protobuf"


@dataclass(frozen=True)
class Soak:
    """By threads, the resources of the process at each reading, and the fate of its spans. Memory in kB."""

    variant: str
    parts: list[int]
    readings: dict[int, list[dict[str, int]]]
    received: dict[int, int]
    counts: dict[int, dict[str, int]]
    seconds: dict[int, float]


def measure(variant: Variant, parts: list[int], threads: list[int], *, http: bool = False) -> Soak:
    """Run one process for each number of threads; its spans go over gRPC, or over HTTP."""
    # Else malloc has an arena for each thread, of which a part's threads take now these and now those: with four, up to
    # 2 MB more or less from one reading to the next, of unused memory.
    variant = replace(variant, env={**variant.env, "MALLOC_ARENA_MAX": "1"})
    result = Soak(variant.name, parts, {}, {}, {}, {})
    for many in threads:
        with run_receiver() as receiver, _taking(receiver) as taken:
            size = ("--threads", str(many), "--parts", *map(str, parts))
            cores = CORES if many > 1 else ()
            over = {"OTEL_EXPORTER_OTLP_PROTOCOL": HTTP, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
            sending = replace(variant, env={**variant.env, **over}) if http else variant
            one = run(sending, receiver, "soak.py", CHILD, *size, cores=cores)
        result.readings[many], result.counts[many] = one["readings"], one["counts"]
        result.seconds[many], result.received[many] = one["seconds"], sum(taken)
        progress(f"{many} threads: {sum(parts)} requests in {one['seconds']:.0f} s")
    return result


class _taking:  # noqa: N801 -- used as a statement
    """Keep the receiver from growing while the block runs, and count what it received."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._done = threading.Event()
        self._taken: list[int] = []
        self._thread = threading.Thread(target=self._take)

    def __enter__(self) -> list[int]:
        self._thread.start()
        return self._taken

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _take(self) -> None:
        while not self._done.wait(TAKE_EVERY_S):
            self._taken.append(self._receiver.take())
        self._taken.append(self._receiver.take())


# --- the process


def parts(requests: int, readings: int) -> list[int]:
    """Return the number of requests before each reading."""
    first = min(FIRST, requests // 10)
    return [first, *[(requests - first) // (readings - 1)] * (readings - 1)]


async def soak(app: Any, requests: list[int], threads: int) -> dict[str, Any]:
    """Send the requests in parts, and read in between."""
    readings = []
    started = time.monotonic()
    async with lifespan(app):
        for part in requests:
            await _part(app, part, threads)
            await asyncio.sleep(SETTLE_S)
            readings.append(_reading())
        return {"readings": readings, "seconds": time.monotonic() - started, "counts": _counts()}


async def _part(app: Any, requests: int, threads: int) -> None:
    if threads == 1:
        await call(app, itertools.repeat(PATH, requests))
        return
    failures: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(call(app, itertools.repeat(PATH, requests // threads)))
        except BaseException as error:  # noqa: BLE001 -- raised below, in the thread that ends the process
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()  # nothing else is for this thread's loop to do meanwhile
    if failures:
        raise failures[0]


def _reading() -> dict[str, int]:
    # malloc keeps freed memory, varying in size. Only used memory shows growth.
    gc.collect()
    _trim(0)
    return {
        "rss_kb": status_kb(Path("/proc/self/status").read_text(), "VmRSS"),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


def _counts() -> dict[str, int]:
    """Return the fate of spans by stagetrace's own counts, if it records."""
    build = sys.modules.get("stagetrace.otlp.export.batch_processor")
    counts: Iterator[dict[str, int]] = (one.counts() for one in build.processors()) if build else iter(())
    return next(counts, {})


# --- the report


def tables(result: Soak) -> list[Table]:
    """Return the table for people."""
    rows = []
    for many, readings in result.readings.items():
        first, last = readings[0], readings[-1]
        row = [str(many), f"{first['rss_kb'] / 1024:.1f}", f"{last['rss_kb'] / 1024:.1f}", f"{grown_mb(readings):+.2f}"]
        row += [f"{first[what]} -> {last[what]}" for what in ("threads", "descriptors")]
        lost = sum(
            result.counts[many].get(outcome, 0) for outcome in ("dropped", "dropped_breaches", "refused", "lost")
        )
        rows.append([*row, str(result.received[many]), str(lost) if result.counts[many] else ""])
    first_part = f"MB after {result.parts[0]}"
    columns = ("event loops", first_part, "MB at the end", "grown", "threads", "descriptors", "spans received", "lost")
    return [Table(f"{result.variant}, {sum(result.parts)} requests", columns, rows)]


def grown_mb(readings: list[dict[str, int]]) -> float:
    """Return the growth of the process after the first part."""
    return (readings[-1]["rss_kb"] - readings[0]["rss_kb"]) / 1024


def reading(result: Soak) -> list[str]:
    """Return what the figures mean."""
    return [
        f"With {many} event loops the process grew by {grown_mb(readings):+.2f} MB after the first {result.parts[0]} "
        "requests. They come as fast as they can: what cannot be sent as fast is dropped, and counted as lost."
        for many, readings in result.readings.items()
    ]


def main() -> None:
    """Measure and print; as the measured process itself, soak."""
    if CHILD in sys.argv:
        child = argparse.ArgumentParser()
        child.add_argument(CHILD, action="store_true")
        child.add_argument("--parts", type=int, nargs="+")
        child.add_argument("--threads", type=int)
        args = child.parse_args()
        json.dump(asyncio.run(soak(load("app_routes:app"), args.parts, args.threads)), sys.stdout)
        return
    arguments = parser(__doc__, "python benchmarks/soak.py --requests 10000000 --threads 1 4 --json soak.json")
    arguments.add_argument("--requests", type=int, default=1_000_000)
    arguments.add_argument("--readings", type=int, default=READINGS)
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 4], help="event loops, one process for each")
    arguments.add_argument("--variant", choices=list(VARIANTS), default=STAGETRACE.name)
    arguments.add_argument("--python", default=sys.executable, help="interpreter of the measured process")
    arguments.add_argument("--http", action="store_true", help="send over HTTP: free-threaded builds have no grpcio")
    args = arguments.parse_args()
    variant = replace(VARIANTS[args.variant], python=args.python)
    result = measure(variant, parts(args.requests, args.readings), args.threads, http=args.http)
    show(result, tables, reading, args.json)


if __name__ == "__main__":
    main()
