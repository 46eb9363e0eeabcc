"""Measure how recording changes latency, at a load that the untraced service can handle easily.

A load is the share of the time in which the untraced service keeps its core busy; the rate of requests is set
accordingly beforehand. The smaller a model, the more recording adds to it, so there are two services, one with a
logistic regression and one with a random forest, each behind a scaler.

Requests are sent at random times (Poisson) whether or not earlier ones have been answered, and latency counts from the
moment at which a request was due. The server has one core, the load generator and the OTLP receiver the other. All
set-ups of a round get the same arrivals, each in a fresh process, and a warm-up with such arrivals. The figures of the
service's garbage collector are recorded (`app_gc.py`), since its full collections stop all requests in progress.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    SETTLE_S,
    STAGETRACE,
    STOCK,
    UNTRACED,
    Receiver,
    Spread,
    Table,
    Variant,
    parser,
    progress,
    quantile,
    ratios,
    rotated,
    run_receiver,
    serve,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

COMPARED = (UNTRACED, STOCK, STAGETRACE)
COLLECTIONS = ("generation 0", "generation 1", "generation 2 (full)")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
LOADS = (0.4,)  # about where a careful team runs a service
MODELS = ("logistic regression", "forest")  # BENCH_MODEL of app.py
APP = "app_gc:app"
WARM_UP_S = 3.0
LOOKS, LOOK_S = 2, 5.0  # at how busy the untraced service is, before its rate is right


@dataclass(frozen=True)
class Round:
    """One set-up in one round: latencies in milliseconds by quantile, and how far the measurement can be trusted.

    `collections` by generation; `full_ms` is the total time of those of the oldest.
    """

    ms: dict[str, float]
    requests: int
    busy: float
    send_lag_p99_ms: float
    spans: float
    collections: list[int]
    full_ms: float


@dataclass(frozen=True)
class Load:
    """One model and load: `share` of the time, at `rate` requests a second; by variant, the rounds in order."""

    model: str
    share: float
    rate: float
    rounds: dict[str, list[Round]]


@dataclass(frozen=True)
class Latency:
    """All models and loads."""

    seconds: float
    loads: list[Load]


def measure(rounds: int, seconds: float, shares: Sequence[float] = LOADS, models: Sequence[str] = MODELS) -> Latency:
    """With each model and at each load, find the rate, then measure all variants `rounds` times."""
    loads = []
    with run_receiver() as receiver:
        for model, share in ((model, share) for model in models for share in shares):
            served = [replace(one, env={**one.env, "BENCH_MODEL": model}) for one in COMPARED]
            load = Load(model, share, _rate(served[0], receiver, share), {one.name: [] for one in COMPARED})
            loads.append(load)
            progress(f"{model}: {load.rate:.0f} requests a second keep the untraced service's core busy by {share:.0%}")
            for number in range(rounds):
                for variant in rotated(served, number):
                    one = _once(variant, receiver, load.rate, seconds, number)
                    load.rounds[variant.name].append(one)
                    shown = ", ".join(f"{name} {ms:.2f}" for name, ms in one.ms.items())
                    progress(f"{model}, {share:.0%}, round {number + 1}/{rounds}  {variant.name:12} {shown} ms")
    return Latency(seconds, loads)


def _rate(variant: Variant, receiver: Receiver, share: float) -> float:
    """Return the rate of requests that keeps a core busy for a share of the time.

    A service that waits between requests finds its caches cold: at full speed it would be another one.
    """
    with serve(variant, receiver, APP) as server:
        measured = server.load("--connections", "1", "--requests", "500")
    rate = share * len(measured["latencies_s"]) / measured["cpu_s"]
    for look in range(LOOKS):
        rate *= share / _once(variant, receiver, rate, LOOK_S, look).busy
    return float(rate)


def _once(variant: Variant, receiver: Receiver, rate: float, seconds: float, seed: int) -> Round:
    with serve(variant, receiver, APP) as server:
        receiver.take()
        shape = ("--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed), "--settle", str(SETTLE_S))
        measured = server.load("--warm-up", str(round(WARM_UP_S * rate)), *shape)
    ordered = sorted(measured["latencies_s"])
    return Round(
        ms={name: quantile(ordered, share) * 1e3 for name, share in QUANTILES.items()},
        requests=len(ordered),
        busy=measured["cpu_s"] / measured["seconds"],
        send_lag_p99_ms=quantile(sorted(measured["lags_s"]), 0.99) * 1e3,
        spans=receiver.take() / (len(ordered) + measured["warmed_up"]),
        collections=[int(count) for count in measured["collections"]],
        full_ms=measured["collecting_s"][2] * 1e3,
    )


def tables(result: Latency) -> list[Table]:
    """Return the tables for people."""
    return [table for load in result.loads for table in _tables(load, result.seconds)]


def _tables(load: Load, seconds: float) -> list[Table]:
    size = f"{len(load.rounds[UNTRACED.name])} rounds of {seconds:g} s; median (least to greatest)"
    absolute, relative, trust, collecting = [], [], [], []
    for name, rounds in load.rounds.items():
        absolute.append([name, *(Spread.of([one.ms[q] for one in rounds]).text(2) for q in QUANTILES)])
        if name != UNTRACED.name:
            relative.append([name, *(_ratio(load, name, q).text(2) for q in QUANTILES)])
        busy, lag = Spread.of([one.busy * 100 for one in rounds]), Spread.of([one.send_lag_p99_ms for one in rounds])
        spans = Spread.of([one.spans for one in rounds])
        trust.append([name, str(sum(one.requests for one in rounds)), busy.text(), lag.text(2), spans.text(2)])
        counts = (Spread.of([one.collections[generation] for one in rounds]).text() for generation in range(3))
        collecting.append([name, *counts, Spread.of([one.full_ms for one in rounds]).text()])
    trust_columns = ("set-up", "requests", "server's core busy, %", "p99 lag of sends, ms", "spans received/request")
    return [
        Table(f"Latency in ms, {load.model}, {load.rate:.0f} requests/s: {size}", ("set-up", *QUANTILES), absolute),
        Table("As a multiple of the untraced service's in the same round", ("set-up", *QUANTILES), relative),
        Table("Collections of garbage while it lasted", ("set-up", *COLLECTIONS, "full ones, ms"), collecting),
        Table("How the load was", trust_columns, trust),
    ]


def _ratio(load: Load, name: str, quantile_name: str) -> Spread:
    ours, base = ([one.ms[quantile_name] for one in load.rounds[which]] for which in (name, UNTRACED.name))
    return Spread.of(ratios(ours, base))


def reading(result: Latency) -> list[str]:
    """Return what the figures mean."""
    lines = []
    for load in result.loads:
        busy = {one.name: Spread.of([r.busy for r in load.rounds[one.name]]).median for one in COMPARED}
        times = {
            one.name: " and ".join(f"x{_ratio(load, one.name, q).text(2)}" for q in ("p50", "p99"))
            for one in (STAGETRACE, STOCK)
        }
        tails = {one.name: _ratio(load, one.name, "p99.9").text(1) for one in (STAGETRACE, STOCK)}
        lines.append(
            f"{load.model.capitalize()}: p50 and p99 are {times[STAGETRACE.name]} with stagetrace, "
            f"{times[STOCK.name]} with stock tracing. The server's core is {busy[UNTRACED.name]:.0%} busy untraced, "
            f"{busy[STAGETRACE.name]:.0%} with stagetrace, {busy[STOCK.name]:.0%} with stock: "
            "the nearer to 100 %, the more a figure includes waiting for the one core, not tracing as such. "
            f"p99.9 is x{tails[STAGETRACE.name]} and x{tails[STOCK.name]}."
        )
    lag = max(one.send_lag_p99_ms for load in result.loads for one in load.rounds[UNTRACED.name])
    lines.append(
        f"1 of 100 sends to the untraced service was up to {lag:.1f} ms late, since all its connections were busy or "
        "the generator had no core: tails below that are those of the machine. p99.9 rests on few requests a round."
    )
    return lines


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/latency.py --rounds 5 --seconds 60 --json latency.json")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=15, help="measured in each round, set-up and load")
    arguments.add_argument("--load", type=float, nargs="+", default=LOADS, help="shares of the untraced core's time")
    arguments.add_argument("--model", nargs="+", choices=MODELS, default=MODELS, help="what is served")
    args = arguments.parse_args()
    show(measure(args.rounds, args.seconds, args.load, args.model), tables, reading, args.json)


if __name__ == "__main__":
    main()
