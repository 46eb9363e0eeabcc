"""Measure the embedded back end for docs/performance.md: the rate that it sustains, and ten million spans in its store.

One `stagetrace up` for each rate (spans a second; 0: as fast as it accepts them). Four connections send requests of 495
spans, each of new traces of this moment, at fixed times, whether or not earlier ones have been answered. Meanwhile,
every two seconds, one client asks the folder for the newest breaches and one searches for some over jaeger.api_v3. Then
ten million spans of 24 hours go into a store as in ingest.py, and questions are asked as in queries.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from backend.running import export, run_up  # noqa: E402
from benchmarks import ingest, queries  # noqa: E402
from benchmarks.measure import progress, text  # noqa: E402
from benchmarks.traffic import SPANS_PER_TRACE, Reel, Traffic  # noqa: E402
from stagetrace.semconv import SLA_BREACHED  # noqa: E402
from stagetrace.store.base import (  # noqa: E402
    Selection,
    open_store,
)
from stagetrace.store.jaeger.client import JaegerClient  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backend.running import Up

RATES = (1_000, 5_000, 20_000, 50_000, 100_000, 0)
CONNECTIONS = 4
TRACES = 55
SPANS = TRACES * SPANS_PER_TRACE
PREPARED = 400
HOUR_NS = 3600 * 10**9


@dataclass
class Run:
    """One rate: seconds from the due time of a request to its response, and of each query by its kind."""

    acknowledged: list[float] = field(default_factory=list)
    asked: dict[str, list[float]] = field(default_factory=lambda: {"folder": [], "api_v3": []})
    failed: int = 0


def measure(rate: int, seconds: float, reel: Reel) -> str:
    """Run one rate and return its line."""
    run = Run()
    with tempfile.TemporaryDirectory() as folder, run_up(Path(folder)) as up:
        before = cpu_s(up.process.pid)
        began = time.monotonic()
        stop = threading.Event()
        ways = {"folder": ask_folder, "api_v3": ask_api}
        asking = [threading.Thread(target=ask, args=(up, run.asked[way], stop)) for way, ask in ways.items()]
        for one in asking:
            one.start()
        send(up, run, rate, seconds, reel)
        took = time.monotonic() - began
        stop.set()
        for one in asking:
            one.join()
        cpu = cpu_s(up.process.pid) - before
        peak = next(line for line in Path(f"/proc/{up.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    spans = len(run.acknowledged) * SPANS
    cells = (
        f"{rate or 'all'}",
        f"{spans / took:,.0f}",
        f"{cpu / took * 100:.0f} %",
        f"{spans / cpu:,.0f}",
        f"{quantile(run.acknowledged, 0.5) * 1000:.0f}",
        f"{quantile(run.acknowledged, 0.99) * 1000:.0f}",
        *(f"{quantile(times, 0.5) * 1000:.0f}" for times in run.asked.values()),
        f"{int(peak.split()[1]) // 1024}",
        f"{run.failed}",
    )
    return f"| {' | '.join(cells)} |"


def send(up: Up, run: Run, rate: int, seconds: float, reel: Reel) -> None:
    """Send for `seconds`; every request is due at a time of its own."""
    due: queue.SimpleQueue[tuple[float, int] | None] = queue.SimpleQueue()
    numbers = itertools.count()
    ends = time.monotonic() + seconds

    def work() -> None:
        with grpc.insecure_channel(up.target()) as channel:
            while (item := due.get() if rate else (time.monotonic(), next(numbers))) is not None:
                moment, number = item
                if not rate and moment > ends:
                    return
                try:
                    export(channel, reel.request(number))
                    run.acknowledged.append(time.monotonic() - moment)
                except grpc.RpcError:
                    run.failed += 1

    workers = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for worker in workers:
        worker.start()
    if rate:
        start = time.monotonic()
        for number in range(int(rate * seconds / SPANS)):
            moment = start + number * SPANS / rate
            time.sleep(max(0.0, moment - time.monotonic()))
            due.put((moment, number))
        for _ in workers:
            due.put(None)
    for worker in workers:
        worker.join()


def ask_folder(up: Up, times: list[float], stop: threading.Event) -> None:
    """Ask for the 20 newest breaches of the last hour, every two seconds."""
    with open_store(up.ready["data"]) as reader:
        while not stop.wait(2):
            now = time.time_ns()
            began = time.monotonic()
            reader.breaches(Selection(now - HOUR_NS, now + HOUR_NS, limit=20))
            times.append(time.monotonic() - began)


def ask_api(up: Up, times: list[float], stop: threading.Event) -> None:
    """Search for 20 breached traces of one service, every two seconds, as Jaeger's web page would."""
    client = JaegerClient("127.0.0.1", up.ready["query_grpc_port"])
    while not stop.wait(2):
        now = time.time_ns()
        began = time.monotonic()
        window = ((now - HOUR_NS) // 1000, (now + HOUR_NS) // 1000)
        list(client.find("service-1", {SLA_BREACHED: "true"}, window, 20))
        times.append(time.monotonic() - began)
    client.close()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ten_million(spans: int) -> str:
    """Fill a store in a process of its own and ask it; return the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder, requests = Path(name) / "store", Path(name) / "requests"
        progress(f"making {spans} spans")
        made = ingest.write_requests(requests, queries.day(spans))
        progress("appending them")
        rounds = {key: [value] for key, value in ingest.append_in_child(requests, folder, 4).items()}
        sent = requests.stat().st_size / made
        requests.unlink()
        taken = ingest.Ingest(made, 4, sent, **rounds)
        return text([*ingest.tables(taken), *queries.tables(queries.measure(made, 15, folder))], ())


def rates(seconds: float, offered: Sequence[int]) -> None:
    """Print one table row for each rate."""
    reel = Reel(list(Traffic(time.time_ns() - 60 * 10**9).requests(PREPARED * SPANS, TRACES)))
    head: tuple[str, ...] = ("offered /s", "taken /s", "CPU", "spans / CPU s", "ack p50 ms", "p99")
    head += ("breaches of the folder p50 ms", "a search over api_v3", "RSS MiB", "failed")
    print(f"| {' | '.join(head)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for rate in offered:
        print(measure(rate, seconds, reel), flush=True)
    print()


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/scale.py --seconds 18 --rates 1000 5000 20000 50000 100000 0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--seconds", type=float, default=18, help="for each rate (18)")
    arguments.add_argument("--rates", type=int, nargs="*", default=list(RATES), help="spans a second; 0: all it takes")
    arguments.add_argument("--spans", type=int, default=10_000_000, help="of the large store (10000000); 0: none")
    args = arguments.parse_args()
    rates(args.seconds, args.rates)
    if args.spans:
        print(ten_million(args.spans))


if __name__ == "__main__":
    main()
