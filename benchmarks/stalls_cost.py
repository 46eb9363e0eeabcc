"""Measure what sampling the stacks of late requests costs: the requests in time, and the whole process.

A service of eight threads, in a process of its own for each round, with STAGETRACE_STALLS=0 and 1 in turn. Its
requests take two milliseconds; of some rounds 5 % or all of them take 60, with an objective of 50. The figures are the
p99 of the requests in time, CPU time, and how often the sampler's thread woke up. What a request pays for being known
to the sampler is measured apart, in one process, in short blocks with and without: a service shows no difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import Spread, Table, clean_environment, differences, parser, progress, quantile, ratios, show

POLICY = "* within 50ms"
THREADS = 8
SHORT_S, LATE_S = 0.002, 0.06
LATE_SHARES = (0, 5, 100)  # %
BLOCK = 10_000


@dataclass(frozen=True)
class StallsCost:
    """One figure a round: by the share of late requests in percent, and by variable (0, 1), what a process measured."""

    known_ns: list[float]
    figures: dict[int, dict[str, list[dict[str, float]]]]


def measure(rounds: int, seconds: float) -> StallsCost:
    """Run all shares of late requests with and without sampling `rounds` times."""
    figures: dict[int, dict[str, list[dict[str, float]]]] = {share: {"0": [], "1": []} for share in LATE_SHARES}
    for number in range(rounds):
        for share in LATE_SHARES:
            for on in ("0", "1") if number % 2 else ("1", "0"):
                argv = [sys.executable, __file__, "--serve", str(share), "--seconds", str(seconds)]
                env = {**clean_environment(), "STAGETRACE_STALLS": on}
                done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=True)
                figures[share][on].append(json.loads(done.stdout))
                progress(
                    f"round {number + 1}/{rounds}  {share:3} % late, STAGETRACE_STALLS={on}: {done.stdout.strip()}"
                )
    return StallsCost(known_ns(20 * rounds), figures)


def known_ns(rounds: int) -> list[float]:
    """Return how many nanoseconds of CPU a record takes more that the sampler knows of, one figure for each block."""
    from stagetrace.request.in_flight import in_flight
    from stagetrace.request.request import Request

    def block() -> float:
        began = time.thread_time_ns()
        for _ in range(BLOCK):
            Request().abandon()
        return (time.thread_time_ns() - began) / BLOCK

    added = []
    for _ in range(rounds):
        without = block()
        in_flight.watch(lambda _: 50_000_000, lambda _: None, lambda _: None)
        added.append(block() - without)
        in_flight.stop()
    return added


def serve(share: int, seconds: float) -> dict[str, float]:
    """Serve for a while, `share` percent of the requests late; return what that took."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind

    from stagetrace import SLASpanProcessor
    from stagetrace.causes.stall_sampler import stall_sampler

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SLASpanProcessor(POLICY, SimpleSpanProcessor(exporter)))
    tracer = provider.get_tracer("bench")
    took: list[float] = []
    until = time.perf_counter() + seconds
    requests = [0] * THREADS

    def work(thread: int) -> None:
        while (began := time.perf_counter()) < until:
            is_late = (requests[thread] * THREADS + thread) % 100 < share
            requests[thread] += 1
            with tracer.start_as_current_span("GET /x", kind=SpanKind.SERVER):
                time.sleep(LATE_S if is_late else SHORT_S)
                sum(range(2_000))
            if not is_late:
                took.append(time.perf_counter() - began)
            exporter.clear()

    threads = [threading.Thread(target=work, args=(one,)) for one in range(THREADS)]
    began = time.process_time()
    for one in threads:
        one.start()
    time.sleep(seconds / 2)
    sampler = _sampler()
    for one in threads:
        one.join()
    count = sum(requests)
    found = {"requests": count, "cpu_us": (time.process_time() - began) / count * 1e6}
    found["p99_ms"] = quantile(sorted(took), 0.99) * 1e3 if took else 0.0
    found["wake_ups_per_s"] = _times_asleep(sampler) / seconds if sampler else 0.0
    found["sampler_cpu"] = _cpu_s(sampler) / seconds if sampler else 0.0
    return {**found, "skipped": stall_sampler.skipped}


def _sampler() -> int | None:
    return next((one.native_id for one in threading.enumerate() if one.name == "stagetrace-stalls"), None)


def _times_asleep(thread: int) -> int:
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def _cpu_s(thread: int) -> float:
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def tables(result: StallsCost) -> list[Table]:
    """Return the table for people."""
    rows = []
    for share, both in result.figures.items():
        without, sampled = both["0"], both["1"]
        row = [f"{share} %"]
        row += [Spread.of([one[key] for one in sampled]).text(2) for key in ("p99_ms",)] if share < 100 else [""]
        row += [Spread.of(_ratios("p99_ms", both)).text(2)] if share < 100 else [""]
        row += [Spread.of(differences(_of("cpu_us", sampled), _of("cpu_us", without))).text(1)]
        row += [Spread.of([one["sampler_cpu"] * 100 for one in sampled]).text(2)]
        row += [Spread.of(_of("wake_ups_per_s", sampled)).text(2), Spread.of(_of("skipped", sampled)).text()]
        rows.append(row)
    columns = (
        "late requests",
        "p99 of those in time, ms",
        "the same / without sampling",
        "CPU added, us/request",
        "the sampler's CPU, % of one",
        "its wake-ups a second",
        "stacks not sampled",
    )
    rounds = len(result.figures[0]["0"])
    return [Table(f"Sampling of late requests: {rounds} rounds; median (least to greatest)", columns, rows)]


def _of(key: str, figures: list[dict[str, Any]]) -> list[float]:
    return [one[key] for one in figures]


def _ratios(key: str, both: dict[str, list[dict[str, float]]]) -> list[float]:
    return ratios(_of(key, both["1"]), _of(key, both["0"]))


def reading(result: StallsCost) -> list[str]:
    """Return what the figures mean."""
    known = sorted(result.known_ns)
    low, middle = (quantile(known, share) / 1e3 for share in (0.1, 0.5))
    text = f"A request pays {middle:.2f} us for being known to the sampler, {low:.2f} in the best tenth of blocks."
    return [text]


def main() -> None:
    """Measure and print; or serve, as one of the processes that are measured."""
    arguments = parser(__doc__, "python benchmarks/stalls_cost.py --rounds 5 --json stalls.json")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=4.0, help="that each process serves")
    arguments.add_argument("--serve", type=int, metavar="PERCENT", help="serve, with so many late requests")
    args = arguments.parse_args()
    if args.serve is not None:
        print(json.dumps(serve(args.serve, args.seconds)), flush=True)
        os._exit(0)
    show(measure(args.rounds, args.seconds), tables, reading, args.json)


if __name__ == "__main__":
    main()
