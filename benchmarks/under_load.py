"""Measure what recording does to a service under load: latencies by utilisation, throughput, growth.

Latency: a model that computes for a given time answers Poisson arrivals, over HTTP and gRPC, at shares of what the
untraced service can take, and p99 and p99.9 are compared with the untraced service's in the same round. Throughput:
eight HTTP connections that always have a request in progress. Growth: the CPU time that recording adds to a request in
one process, by the number of its chunks and by the requests in flight. Two cores: the service's, and that of generator
and receiver.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.grpc_cost import FEATURES, METHOD, message, serving
from benchmarks.load import cpu_seconds, poisson
from benchmarks.measure import (
    OTHER_CORE,
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
from stagetrace.load.generator import run as run_punctually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    Ask = Callable[[float, float, int], list[float]]  # a rate, seconds, and a seed in; latencies in seconds out
    Serving = Callable[[Variant, Receiver], AbstractContextManager[tuple[int, Ask]]]  # a process, and how to ask it

APP = "app_timed:app"
COMPARED = (UNTRACED, STAGETRACE)
SERVICE_MS = (0.75, 5.0, 20.0)
SHARES = (0.3, 0.6, 0.9)
TAILS = {"p99": 0.99, "p99.9": 0.999}
CONNECTIONS = 8
CHUNKS = (1, 10, 100, 1_000)
AT_ONCE = (1, 50, 500)
WARM_UP_S, CAPACITY_S, SATURATED_S = 1.0, 3.0, 4.0
FIRST_S = 4.0  # before all else, until spans have been exported: a service imports and learns at its start
WORK = 4_000  # chunks, or requests, that a measurement of growth takes
Rounds = dict[str, list[float]]  # by variant, a figure a round


@dataclass(frozen=True)
class UnderLoad:
    """Latencies in seconds by "server; time; share; quantile"; requests a second; CPU microseconds a request."""

    latency: dict[str, Rounds] = field(default_factory=dict)
    saturated: dict[str, Rounds] = field(default_factory=dict)
    chunks: dict[str, Rounds] = field(default_factory=dict)
    in_flight: dict[str, Rounds] = field(default_factory=dict)


def measure(
    rounds: int, seconds: float, service_ms: Sequence[float] = SERVICE_MS, shares: Sequence[float] = SHARES
) -> UnderLoad:
    """Measure all of it, each pair `rounds` times."""
    result = UnderLoad()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {OTHER_CORE})  # RPCs are sent from here
    try:
        with run_receiver() as receiver:
            for ms in service_ms:
                for server in SERVERS.items():
                    _latencies(result, receiver, server, ms, shares, rounds, seconds)
                _saturated(result, receiver, ms, rounds)
            for number in range(rounds):
                for count in CHUNKS:
                    _grown(result.chunks, receiver, {"BENCH_CHUNKS": count}, count, WORK // count + 50, number)
                for count in AT_ONCE:
                    _grown(result.in_flight, receiver, {"BENCH_PAUSES": 2}, count, WORK, number, at_once=count)
    finally:
        os.sched_setaffinity(0, cores)  # others measure after this
    return result


def _with(variant: Variant, **env: float) -> Variant:
    return replace(variant, env={**variant.env, **{name: str(value) for name, value in env.items()}})


@contextmanager
def _over_http(variant: Variant, receiver: Receiver) -> Iterator[tuple[int, Ask]]:
    with serve(variant, receiver, APP) as server:

        def ask(rate: float, seconds: float, seed: int) -> list[float]:
            shape = ("--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed), "--warm-up", "0")
            found: list[float] = server.load(*shape)["latencies_s"]
            return found

        yield server.pid, ask


@contextmanager
def _over_grpc(kind: str, variant: Variant, receiver: Receiver) -> Iterator[tuple[int, Ask]]:
    with serving(kind, variant, receiver) as (target, pid):
        yield pid, lambda rate, seconds, seed: run_punctually(_rpcs(target, rate, seconds, seed))


async def _rpcs(target: str, rate: float, seconds: float, seed: int) -> list[float]:
    """Return the latencies of RPCs, each from when it was to be sent."""
    import grpc.aio

    latencies = []
    async with grpc.aio.insecure_channel(target) as channel:
        predict, request = channel.unary_unary(METHOD, None, None), message(FEATURES)
        await predict(request)
        start = time.perf_counter()

        async def one(due: float) -> None:
            await asyncio.sleep(start + due - time.perf_counter())
            await predict(request)
            latencies.append(time.perf_counter() - start - due)

        await asyncio.gather(*map(one, poisson(random.Random(seed), rate, seconds)))
    return latencies


SERVERS: dict[str, Serving] = {
    "HTTP": _over_http,
    "gRPC, threads": partial(_over_grpc, "threads"),
    "gRPC, asyncio": partial(_over_grpc, "asyncio"),
}


def _latencies(
    result: UnderLoad,
    receiver: Receiver,
    server: tuple[str, Serving],
    ms: float,
    shares: Sequence[float],
    rounds: int,
    seconds: float,
) -> None:
    kind, started = server
    compared = [_with(one, BENCH_SERVICE_MS=ms) for one in COMPARED]
    with started(compared[0], receiver) as (pid, ask):
        low = 300 / (ms + 1)  # requests a second
        ask(low, WARM_UP_S, 0)
        before = cpu_seconds(pid)
        capacity = len(ask(low, CAPACITY_S, 1)) / (cpu_seconds(pid) - before)
    for number in range(rounds):
        for variant in rotated(compared, number):
            with started(variant, receiver) as (_, ask):
                ask(shares[0] * capacity, FIRST_S, number + rounds)
                for share in shares:
                    ask(share * capacity, WARM_UP_S, number + rounds)
                    ordered = sorted(ask(share * capacity, seconds, number))
                    for name, at in TAILS.items():
                        rows = result.latency.setdefault("; ".join((kind, f"{ms:g} ms", f"{share:.0%}", name)), {})
                        rows.setdefault(variant.name, []).append(quantile(ordered, at))
            progress(f"{kind}, {ms:g} ms, round {number + 1}/{rounds}, {variant.name}")


def _saturated(result: UnderLoad, receiver: Receiver, ms: float, rounds: int) -> None:
    requests = str(int(SATURATED_S * 1e3 / (ms + 1)))
    for number in range(rounds):
        for variant in rotated([_with(one, BENCH_SERVICE_MS=ms) for one in COMPARED], number):
            with serve(variant, receiver, APP) as server:
                measured = server.load("--connections", str(CONNECTIONS), "--requests", requests, "--warm-up", "100")
            rows = result.saturated.setdefault(f"{ms:g} ms", {})
            rows.setdefault(variant.name, []).append(len(measured["latencies_s"]) / measured["seconds"])


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
            *names.split("; "),
            Spread.of([value * 1e3 for value in rows[UNTRACED.name]]).text(2),
            Spread.of(ratios(rows[STAGETRACE.name], rows[UNTRACED.name])).text(2),
        ]
        for names, rows in result.latency.items()
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
        Table(f"Latency: {size}", ("server", "service time", "load", "", "untraced, ms", "traced / untraced"), latency),
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
