"""Compare the embedded back end with the real Jaeger on badger: the same requests over the same gRPC, in pairs.

Each of a pair gets a fresh folder and the same requests over 4 connections, as fast as it accepts them; each response
is awaited. A run ends when the last traces can be read over jaeger.api_v3: then everything is stored and indexed. The
figures are the CPU seconds of the process until then, and the bytes on disk after it has stopped. In between, both are
asked for 20 breached traces of one service, over the same API. Jaeger is the one of `make backends`, with
collector-config/jaeger.yaml. Pairs run in turn; which back end is first alternates.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from backend.running import export, run_up  # noqa: E402
from backends import run_jaeger  # noqa: E402
from benchmarks.measure import Spread, Table, parser, progress, ratios, show, status_kb  # noqa: E402
from benchmarks.scale import CONNECTIONS, HOUR_NS, SPANS, TRACES, cpu_s, quantile  # noqa: E402
from benchmarks.traffic import Traffic  # noqa: E402
from stagetrace.errors import StoreError  # noqa: E402
from stagetrace.semconv import SLA_BREACHED  # noqa: E402
from stagetrace.store.jaeger.client import JaegerClient  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS, JAEGER = "stagetrace up", "Jaeger, badger"
READABLE_WITHIN_S = 120
ASKED = 9


@dataclass(frozen=True)
class Figures:
    """The figures of one run of one back end; by pair in `Pairs`."""

    spans_per_cpu_second: float
    spans_per_second: float
    peak_mb: float
    bytes_per_span: float
    search_ms: float
    search_cpu_ms: float


FIGURES = {
    "spans_per_cpu_second": ("spans per CPU second, durable and readable", 0, ""),
    "spans_per_second": ("spans per second until the last can be read", 0, ""),
    "peak_mb": ("peak memory (RSS)", 0, " MB"),
    "bytes_per_span": ("bytes per span on disk", 1, ""),
    "search_ms": ("search for 20 breached traces of one service, median of 9", 1, " ms"),
    "search_cpu_ms": ("the same, CPU of the back end", 1, " ms"),
}


@dataclass(frozen=True)
class Pairs:
    """By figure and back end, one value a pair."""

    spans: int
    found: dict[str, dict[str, list[float]]]


def measure(pairs: int, spans: int) -> Pairs:
    """Run `pairs` pairs over about `spans` spans each."""
    requests = list(Traffic(time.time_ns() - 60 * 10**9).requests(spans, TRACES))
    found: dict[str, dict[str, list[float]]] = {name: {OURS: [], JAEGER: []} for name in FIGURES}
    for number in range(pairs):
        for who in (OURS, JAEGER)[:: 1 if number % 2 == 0 else -1]:
            progress(f"pair {number + 1} of {pairs}: {who}")
            for name, value in vars(_run(who, requests)).items():
                found[name][who].append(value)
    return Pairs(len(requests) * SPANS, found)


def _run(who: str, requests: Sequence[bytes]) -> Figures:
    spans = len(requests) * SPANS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ExitStack() as stack:
            if who == OURS:
                running = stack.enter_context(run_up(folder)).as_jaeger
            else:
                running = stack.enter_context(run_jaeger(folder, "badger"))
            host, _, port = running.query_grpc.rpartition(":")
            client = JaegerClient(host, int(port))
            stack.callback(client.close)
            cpu, began = cpu_s(running.pid), time.monotonic()
            _send(running.otlp_grpc.removeprefix("http://"), requests)
            _wait_until_readable(client, requests)
            spent, took = cpu_s(running.pid) - cpu, time.monotonic() - began
            peak = status_kb(Path(f"/proc/{running.pid}/status").read_text(), "VmHWM") / 1024
            search_ms, search_cpu_ms = _search(client, running.pid)
        size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    return Figures(spans / spent, spans / took, peak, size / spans, search_ms, search_cpu_ms)


def _send(target: str, requests: Sequence[bytes]) -> None:
    waiting = iter(requests)
    lock = threading.Lock()  # guards `waiting`

    def work() -> None:
        with grpc.insecure_channel(target) as channel:
            while True:
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                export(channel, request)

    senders = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


def _wait_until_readable(client: JaegerClient, requests: Sequence[bytes]) -> None:
    """Return when the last trace of each of the last requests can be read whole."""
    ends = time.monotonic() + READABLE_WITHIN_S
    for request in requests[-CONNECTIONS:]:
        spans = ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans
        wanted = spans[-1].trace_id
        count = sum(span.trace_id == wanted for span in spans)
        while _count(client, wanted.hex()) < count:
            if time.monotonic() > ends:
                raise SystemExit(f"trace {wanted.hex()} cannot be read after {READABLE_WITHIN_S} s")
            time.sleep(0.05)


def _count(client: JaegerClient, trace_id: str) -> int:
    try:
        found = [TracesData.FromString(part) for part in client.get_trace(trace_id)]
    except StoreError:  # it is not there yet
        return 0
    return sum(len(scope.spans) for one in found for rs in one.resource_spans for scope in rs.scope_spans)


def _search(client: JaegerClient, pid: int) -> tuple[float, float]:
    """Return the milliseconds of a search, and of the back end's CPU during it."""
    now = time.time_ns()
    window = ((now - HOUR_NS) // 1000, (now + HOUR_NS) // 1000)
    took: list[float] = []
    cpu = cpu_s(pid)
    for _ in range(ASKED):
        began = time.monotonic()
        traces = list(client.find("service-1", {SLA_BREACHED: "true"}, window, 20))
        took.append(1000 * (time.monotonic() - began))
        assert traces
    return quantile(took, 0.5), 1000 * (cpu_s(pid) - cpu) / ASKED


def tables(result: Pairs) -> Sequence[Table]:
    """Return the figures, and their differences within a pair."""
    rows = []
    for name, (title, digits, unit) in FIGURES.items():
        ours, theirs = (result.found[name][who] for who in (OURS, JAEGER))
        texts = (Spread.of(values).text(digits, unit) for values in (ours, theirs))
        rows.append((title, *texts, Spread.of(ratios(ours, theirs)).text(2)))
    title = f"{result.spans:,} spans a run, {len(result.found['peak_mb'][OURS])} pairs"
    return [Table(title, ("", OURS, JAEGER, "ratio within a pair"), rows)]


def reading(result: Pairs) -> Sequence[str]:
    """Return what the figures mean."""
    rate = result.found["spans_per_cpu_second"]
    return [f"A CPU second takes in {Spread.of(ratios(rate[OURS], rate[JAEGER])).median:.1f} times as many spans."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/beside_jaeger.py --pairs 5")
    arguments.add_argument("--pairs", type=int, default=3, help="how many (3)")
    arguments.add_argument("--spans", type=int, default=150_000, help="spans of each run (150000)")
    args = arguments.parse_args()
    show(measure(args.pairs, args.spans), tables, reading, args.json)


if __name__ == "__main__":
    main()
