"""Measure the CPU that recording adds to each request.

The real server runs on one core; the client, on another, uses one keep-alive connection. The figure is the CPU time of
the server process with all its threads, exports included, read from its own clock. Each round runs every set-up once,
in a fresh process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    SETTLE_S,
    STAGETRACE,
    STOCK,
    STOCK_SAMPLED,
    UNTRACED,
    VARIANTS,
    Receiver,
    Spread,
    Table,
    Variant,
    differences,
    parser,
    progress,
    ratios,
    rotated,
    run_receiver,
    serve,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP = 500
APP = "app:app"


@dataclass(frozen=True)
class RequestCost:
    """By variant, one figure a round: CPU microseconds per request, spans received per request."""

    requests: int
    cpu_us: dict[str, list[float]]
    spans: dict[str, list[float]]


def measure(rounds: int, requests: int, variants: Sequence[Variant] = VARIANTS, app: str = APP) -> RequestCost:
    """Run the variants `rounds` times; the untraced, the stock one and stagetrace must be among them."""
    names = [variant.name for variant in variants]
    result = RequestCost(requests, {name: [] for name in names}, {name: [] for name in names})
    with run_receiver() as receiver:
        for number in range(rounds):
            for variant in rotated(variants, number):
                cpu_us, spans = _once(variant, receiver, requests, app)
                result.cpu_us[variant.name].append(cpu_us)
                result.spans[variant.name].append(spans)
                progress(f"round {number + 1}/{rounds}  {variant.name:24} {cpu_us:6.0f} us a request")
    return result


def _once(variant: Variant, receiver: Receiver, requests: int, app: str) -> tuple[float, float]:
    with serve(variant, receiver, app) as server:
        shape = ("--connections", "1", "--warm-up", str(WARM_UP), "--settle", str(SETTLE_S))
        measured = server.load(*shape, "--requests", str(requests))
    # The warm-up's are received too; `/health` has been asked once.
    return measured["cpu_s"] / requests * 1e6, receiver.take() / (requests + WARM_UP + 1)


def tables(result: RequestCost) -> list[Table]:
    """Return the table for people."""
    base = result.cpu_us[UNTRACED.name]
    added = {name: differences(values, base) for name, values in result.cpu_us.items()}
    rows = []
    for name, values in result.cpu_us.items():
        row = [name, Spread.of(values).text()]
        if name == UNTRACED.name:
            row += ["", ""]
        else:
            row += [Spread.of(added[name]).text(), Spread.of(ratios(added[name], added[STOCK.name])).text(2)]
        rows.append([*row, f"{Spread.of(result.spans[name]).median:.2f}"])
    rounds = f"{len(base)} rounds of {result.requests} requests; median (least to greatest)"
    columns = ("set-up", "CPU us/request", "added, us", "added / stock's added", "spans received/request")
    return [Table(f"CPU per request: {rounds}", columns, rows)]


def reading(result: RequestCost) -> list[str]:
    """Return what the figures mean."""
    base = result.cpu_us[UNTRACED.name]
    added = {name: differences(values, base) for name, values in result.cpu_us.items()}
    ours, stocks = Spread.of(added[STAGETRACE.name]).median, Spread.of(added[STOCK.name]).median
    our_spans, stock_spans = (Spread.of(result.spans[one.name]).median for one in (STAGETRACE, STOCK))
    times = Spread.of(ratios(added[STAGETRACE.name], added[STOCK.name])).text(2)
    added_line = (
        f"stagetrace adds {ours:.0f} us to a request, {times} times what stock tracing adds ({stocks:.0f} us). "
        f"It sends {our_spans:.1f} spans of it, stock {stock_spans:.1f}: "
        f"{ours / our_spans:.0f} and {stocks / stock_spans:.0f} us for each span."
    )
    if STOCK_SAMPLED.name not in added:
        return [added_line]
    sampling_line = (
        "At 1 % sampling stock records nothing of the other 99 %, while stagetrace records and judges every request "
        "and leaves out only the sending."
    )
    return [added_line, sampling_line]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/request_cost.py --rounds 7 --json cost.json")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--requests", type=int, default=3000, help="measured in each round and set-up")
    arguments.add_argument(
        "--app", default=APP, help="what is served, such as app_timed:app, whose handler is asynchronous"
    )
    args = arguments.parse_args()
    show(measure(args.rounds, args.requests, app=args.app), tables, reading, args.json)


if __name__ == "__main__":
    main()
