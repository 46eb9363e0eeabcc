"""At what rate the embedded back end is at its end: `python benchmarks/scale.py [SECONDS [RATE ...]]`.

One `stagetrace up` for each rate (spans a second; 0: as fast as it takes them). Four connections send prepared
requests of 495 spans at fixed times, whether or not earlier ones were answered; meanwhile one client asks the folder
for the newest breaches and one searches for some over jaeger.api_v3, every two seconds. The figures of docs/scale.md.
"""

from __future__ import annotations

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
from benchmarks.traffic import SPANS_PER_TRACE, Traffic  # noqa: E402
from stagetrace.semconv import SLA_BREACHED  # noqa: E402
from stagetrace.store.base import Selection  # noqa: E402
from stagetrace.store.jaeger_client import JaegerClient  # noqa: E402
from stagetrace.store.url import open_store  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backend.running import Up

RATES = (5_000, 20_000, 50_000, 100_000, 0)
CONNECTIONS = 4
TRACES = 55
SPANS = TRACES * SPANS_PER_TRACE
PREPARED = 400
HOUR_NS = 3600 * 10**9


@dataclass
class Run:
    """What one rate gave: seconds from the time a request was due to its answer, and of each query by its way."""

    acknowledged: list[float] = field(default_factory=list)
    asked: dict[str, list[float]] = field(default_factory=lambda: {"folder": [], "api_v3": []})
    failed: int = 0


def measure(rate: int, seconds: float, requests: Sequence[bytes]) -> str:
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
        send(up, run, rate, seconds, requests)
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


def send(up: Up, run: Run, rate: int, seconds: float, requests: Sequence[bytes]) -> None:
    """Send for that long; every request is due at a time of its own."""
    due: queue.SimpleQueue[tuple[float, bytes] | None] = queue.SimpleQueue()
    ends = time.monotonic() + seconds

    def work() -> None:
        with grpc.insecure_channel(up.target()) as channel:
            number = 0
            while (item := due.get() if rate else (time.monotonic(), requests[number % len(requests)])) is not None:
                number += 1
                if not rate and time.monotonic() > ends:
                    return
                try:
                    export(channel, item[1])
                    run.acknowledged.append(time.monotonic() - item[0])
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
            due.put((moment, requests[number % len(requests)]))
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


def main(arguments: Sequence[str]) -> None:
    """Print one table row for each rate."""
    seconds = float(arguments[0]) if arguments else 20
    rates = [int(one) for one in arguments[1:]] or list(RATES)
    traffic = Traffic(time.time_ns() - 60 * 10**9)
    requests = list(traffic.requests(PREPARED * SPANS, TRACES))
    head: tuple[str, ...] = ("offered /s", "taken /s", "CPU", "spans / CPU s", "ack p50 ms", "p99")
    head += ("breaches of the folder p50 ms", "a search over api_v3", "RSS MiB", "failed")
    print(f"| {' | '.join(head)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for rate in rates:
        print(measure(rate, seconds, requests), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
