"""Measure what recording does to a service under load: latencies by utilisation, throughput, growth.

Latency: a model that computes for a given time answers Poisson arrivals at shares of what the untraced service can
take, and p99 and p99.9 are compared with the untraced service's in the same round. Throughput: eight connections that
always have a request in progress. Growth: the CPU time that recording adds to a request in one process, by the number
of its chunks and by the requests in flight. Two cores: the service's, and that of generator and receiver.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    SETTLE_S,
    STAGETRACE,
    UNTRACED,
    Receiver,
    Spread,
    Table,
    Variant,
    differences,
    parser,
    progress,
    quantile,
    ratios,
    rotated,
    run,
    run_receiver,
    serve,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

APP = "app_timed:app"
COMPARED = (UNTRACED, STAGETRACE)
SERVICE_MS = (0.75, 5.0, 20.0)
SHARES = (0.3, 0.6, 0.9)
TAILS = {"p99": 0.99, "p99.9": 0.999}
CONNECTIONS = 8
CHUNKS = (1, 10, 100, 1_000)
AT_ONCE = (1, 50, 500)
WORK = 4_000  # chunks, or requests, that a measurement of growth takes
Rounds = dict[str, list[float]]  # by variant, a figure a round


@dataclass(frozen=True)
class UnderLoad:
    """Latencies in seconds by service time, share and quantile; requests a second; CPU microseconds a request."""

    latency: dict[str, Rounds] = field(default_factory=dict)
    saturated: dict[str, Rounds] = field(default_factory=dict)
    chunks: dict[str, Rounds] = field(default_factory=dict)
    in_flight: dict[str, Rounds] = field(default_factory=dict)


def measure(
    rounds: int, seconds: float, service_ms: Sequence[float] = SERVICE_MS, shares: Sequence[float] = SHARES
) -> UnderLoad:
    """Measure all of it, each pair `rounds` times."""
    result = UnderLoad()
    with run_receiver() as receiver:
        for ms in service_ms:
            _latencies(result, receiver, ms, shares, rounds, seconds)
        for number in range(rounds):
            for count in CHUNKS:
                _grown(result.chunks, receiver, {"BENCH_CHUNKS": count}, count, WORK // count + 50, number)
            for count in AT_ONCE:
                _grown(result.in_flight, receiver, {"BENCH_PAUSES": 2}, count, WORK, number, at_once=count)
    return result


def _with(variant: Variant, **env: float) -> Variant:
    return replace(variant, env={**variant.env, **{name: str(value) for name, value in env.items()}})


def _latencies(
    result: UnderLoad, receiver: Receiver, ms: float, shares: Sequence[float], rounds: int, seconds: float
) -> None:
    served = [_with(one, BENCH_SERVICE_MS=ms) for one in COMPARED]
    with serve(served[0], receiver, APP) as server:
        measured = server.load("--connections", "1", "--requests", "300", "--warm-up", "100")
    capacity = 300 / measured["cpu_s"]
    for number in range(rounds):
        for variant in rotated(served, number):
            with serve(variant, receiver, APP) as server:
                for share in shares:
                    shape = ("--rate", str(share * capacity), "--seconds", str(seconds), "--seed", str(number))
                    measured = server.load("--warm-up", "200", *shape)
                    ordered = sorted(measured["latencies_s"])
                    for name, at in TAILS.items():
                        rows = result.latency.setdefault(f"{ms:g} ms, {share:.0%}, {name}", {})
                        rows.setdefault(variant.name, []).append(quantile(ordered, at))
                requests = str(int(2 * capacity))
                measured = server.load("--connections", str(CONNECTIONS), "--requests", requests, "--warm-up", "100")
                rows = result.saturated.setdefault(f"{ms:g} ms", {})
                rows.setdefault(variant.name, []).append(len(measured["latencies_s"]) / measured["seconds"])
            progress(f"{ms:g} ms, round {number + 1}/{rounds}, {variant.name}")


def _grown(
    rows: dict[str, Rounds],
    receiver: Receiver,
    env: dict[str, float],
    count: int,
    requests: int,
    number: int,
    at_once: int = 1,
) -> None:
    """Add the CPU microseconds of a request in one process, exports included, of both variants."""
    shape = ("--app", APP, "--requests", str(requests), "--warm-up", str(requests // 4), "--settle", str(SETTLE_S))
    for variant in rotated(COMPARED, number):
        served = _with(variant, BENCH_SERVICE_MS=0, **env)
        measured = run(served, receiver, "asgi.py", *shape, "--at-once", str(at_once))
        found = rows.setdefault(f"{count:,}", {})
        found.setdefault(variant.name, []).append(measured["cpu_s"] / requests * 1e6)


def tables(result: UnderLoad) -> list[Table]:
    """Return the tables for people."""
    rounds = len(next(iter(result.saturated.values()))[UNTRACED.name])
    size = f"{rounds} rounds; median (least to greatest)"
    latency = [
        [
            *name.split(", "),
            Spread.of([value * 1e3 for value in rows[UNTRACED.name]]).text(2),
            Spread.of(ratios(rows[STAGETRACE.name], rows[UNTRACED.name])).text(2),
        ]
        for name, rows in result.latency.items()
    ]
    saturated = [
        [
            name,
            Spread.of(rows[UNTRACED.name]).text(),
            Spread.of(ratios(rows[STAGETRACE.name], rows[UNTRACED.name])).text(2),
        ]
        for name, rows in result.saturated.items()
    ]
    return [
        Table(f"Latency: {size}", ("service time", "load", "", "untraced, ms", "traced / untraced"), latency),
        Table(
            f"Throughput at saturation: {size}",
            ("service time", "untraced, requests/s", "traced / untraced"),
            saturated,
        ),
        Table(f"CPU by chunks of a response: {size}", ("chunks", "untraced, us", "added, us"), _added(result.chunks)),
        Table(
            f"CPU by requests in flight: {size}", ("in flight", "untraced, us", "added, us"), _added(result.in_flight)
        ),
    ]


def _added(found: dict[str, Rounds]) -> list[list[str]]:
    return [
        [
            name,
            Spread.of(rows[UNTRACED.name]).text(),
            Spread.of(differences(rows[STAGETRACE.name], rows[UNTRACED.name])).text(),
        ]
        for name, rows in found.items()
    ]


def reading(result: UnderLoad) -> list[str]:
    """Return what the figures mean."""
    one, *_, most = [differences(rows[STAGETRACE.name], rows[UNTRACED.name]) for rows in result.in_flight.values()]
    growth = Spread.of(ratios(most, one)).text(2)
    return [f"With {AT_ONCE[-1]} requests in flight, recording one takes {growth} times what it takes alone."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/under_load.py --rounds 3 --seconds 8 --json load.json")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8, help="of each load, in each round and set-up")
    arguments.add_argument("--service-ms", type=float, nargs="+", default=SERVICE_MS, help="CPU time of the model")
    arguments.add_argument("--load", type=float, nargs="+", default=SHARES, help="shares of the untraced capacity")
    args = arguments.parse_args()
    show(measure(args.rounds, args.seconds, args.service_ms, args.load), tables, reading, args.json)


if __name__ == "__main__":
    main()
