"""Measure what the local store costs to make spans durable and queryable.

First, realistic traffic (`benchmarks/traffic.py`: per request one judged entry span with some 25 attributes and eight
stage spans) is written to a file of serialized OTLP requests. Then a process appends them to a fresh store, where each
response waits for its fsync, and closes it, so that everything is in the table. The figure is the CPU time of that
process: decoding, log, table, merging of files and checkpoints, without reading the file.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import HERE, Spread, Table, parser, progress, quantile, show, status_kb
from benchmarks.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_NS = 1_790_000_000_000_000_000
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Ingest:
    """One figure a round."""

    spans: int
    threads: int
    bytes_per_span_sent: float
    spans_per_cpu_second: list[float]
    spans_per_second: list[float]
    bytes_per_span: list[float]
    peak_mb: list[float]
    idle_mb: list[float]
    append_ms_p50: list[float]
    append_ms_p99: list[float]


def measure(rounds: int, spans: int, threads: int, traces: int = 55) -> Ingest:
    """Append about `spans` spans in each round, by several threads, in requests of `traces` traces."""
    with tempfile.TemporaryDirectory() as folder:
        requests = Path(folder) / "requests"
        progress(f"making {spans} spans")
        made = write_requests(requests, Traffic(START_NS).requests(spans, traces))
        found = []
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            found.append(append_in_child(requests, Path(folder) / "store", threads))
            shutil.rmtree(Path(folder) / "store")
        sent = requests.stat().st_size / made
    return Ingest(made, threads, sent, **{key: [one[key] for one in found] for key in found[0]})


def write_requests(file: Path, requests: Iterator[bytes]) -> int:
    """Write requests with length prefixes; return their number of spans."""
    from stagetrace.otlp.decode.request import decode

    spans = 0
    with file.open("wb") as output:
        for request in requests:
            output.write(_LENGTH.pack(len(request)) + request)
            spans += decode(request).accepted
    return spans


def append_in_child(requests: Path, store: Path, threads: int) -> dict[str, float]:
    """Append all in a process of its own; return the figures."""
    argv = [sys.executable, str(HERE / "ingest.py"), "--child", str(requests), str(store), str(threads)]
    output = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def _append_all(requests: Path, folder: Path, threads: int) -> dict[str, float]:
    """Append everything and close; return the figures."""
    from stagetrace.store.local import LocalStore

    lock = threading.Lock()  # guards the file and the sums
    took: list[float] = []
    total = {"spans": 0, "reading": 0.0}
    with requests.open("rb") as file:
        store = LocalStore.open(folder)
        with store.reader() as reader:
            reader.services()  # everything is imported and the figures below are of appending alone
        idle = status_kb(Path("/proc/self/status").read_text(), "VmRSS") / 1024
        wall, cpu = time.perf_counter(), time.process_time()

        def work() -> None:
            while True:
                with lock:
                    began = time.thread_time()
                    head = file.read(_LENGTH.size)
                    request = file.read(_LENGTH.unpack(head)[0]) if head else b""
                    total["reading"] += time.thread_time() - began
                if not request:
                    return
                began = time.perf_counter()
                accepted = store.append(request).accepted
                with lock:
                    took.append(time.perf_counter() - began)
                    total["spans"] += accepted

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        store.close()
    spent, wall = time.process_time() - cpu - total["reading"], time.perf_counter() - wall
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    took.sort()
    return {
        "spans_per_cpu_second": total["spans"] / spent,
        "spans_per_second": total["spans"] / wall,
        "bytes_per_span": size / total["spans"],
        "peak_mb": status_kb(Path("/proc/self/status").read_text(), "VmHWM") / 1024,
        "idle_mb": idle,
        "append_ms_p50": 1000 * quantile(took, 0.5),
        "append_ms_p99": 1000 * quantile(took, 0.99),
    }


def tables(result: Ingest) -> Sequence[Table]:
    """Return the figures."""
    rows = [
        ("spans per CPU second", Spread.of(result.spans_per_cpu_second).text()),
        ("spans per second", Spread.of(result.spans_per_second).text()),
        ("bytes per span on disk", Spread.of(result.bytes_per_span).text(1)),
        ("peak memory (RSS)", Spread.of(result.peak_mb).text(0, " MB")),
        ("memory of the open, empty store (RSS)", Spread.of(result.idle_mb).text(0, " MB")),
        ("append and fsync of a request, median", Spread.of(result.append_ms_p50).text(1, " ms")),
        ("append and fsync of a request, p99", Spread.of(result.append_ms_p99).text(1, " ms")),
    ]
    title = f"{result.spans:,} spans of {result.bytes_per_span_sent:.0f} bytes as OTLP, by {result.threads} threads"
    return [Table(title, ("", "median (least to greatest)"), rows)]


def reading(result: Ingest) -> Sequence[str]:
    """Return what the figures mean."""
    rate = Spread.of(result.spans_per_cpu_second).median
    return [f"One core takes in {rate:,.0f} spans a second, acknowledged after fsync and readable at once."]


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        figures: dict[str, Any] = _append_all(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        os.write(1, json.dumps(figures).encode())
        return
    arguments = parser(__doc__, "python benchmarks/ingest.py --spans 10000000")
    arguments.add_argument("--spans", type=int, default=1_000_000, help="spans to append in a round (1000000)")
    arguments.add_argument("--rounds", type=int, default=3, help="how often (3)")
    arguments.add_argument("--threads", type=int, default=4, help="that append at once (4)")
    args = arguments.parse_args()
    show(measure(args.rounds, args.spans, args.threads), tables, reading, args.json)


if __name__ == "__main__":
    main()
