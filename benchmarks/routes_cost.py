"""Measure whether a request costs more the more routes and models a service has.

As in `inprocess_cost.py`, with an application of that many routes, each with a model of its own. Requests use the
routes in turn, and each route at least once before the measurement. The application itself finds the route, in the
untraced set-up too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.inprocess_cost import staged
from benchmarks.measure import (
    SETTLE_S,
    STAGETRACE,
    STAGETRACE_SAMPLED,
    UNTRACED,
    Spread,
    Table,
    Variant,
    differences,
    parser,
    progress,
    ratios,
    rotated,
    run,
    run_receiver,
    show,
)

ROUTES = (1, 100, 10_000)
COMPARED = (UNTRACED, staged(STAGETRACE, "stagetrace"), staged(STAGETRACE_SAMPLED, "stagetrace"))


@dataclass(frozen=True)
class RoutesCost:
    """By number of routes and set-up, one figure a round: CPU microseconds and spans received per request."""

    requests: int
    cpu_us: dict[int, dict[str, list[float]]]
    spans: dict[int, dict[str, list[float]]]


def measure(rounds: int, requests: int) -> RoutesCost:
    """Run all set-ups with all numbers of routes `rounds` times."""
    result = RoutesCost(requests, _nothing_yet(), _nothing_yet())
    cases = [(routes, variant) for routes in ROUTES for variant in COMPARED]
    with run_receiver() as receiver:
        for number in range(rounds):
            for routes, variant in rotated(cases, number * len(COMPARED)):
                warm_up = max(1000, routes)
                shape = ("--requests", str(requests), "--warm-up", str(warm_up), "--settle", str(SETTLE_S))
                app = ("--app", "app_routes:app", "--paths", "app_routes:paths")
                one = run(_with(variant, routes), receiver, "asgi.py", *app, *shape)
                result.spans[routes][variant.name].append(receiver.take() / (requests + warm_up))
                result.cpu_us[routes][variant.name].append(one["cpu_s"] / requests * 1e6)
                shown = f"{routes:6} routes  {variant.name:24} {one['cpu_s'] / requests * 1e6:6.1f} us a request"
                progress(f"round {number + 1}/{rounds}  {shown}")
    return result


def _nothing_yet() -> dict[int, dict[str, list[float]]]:
    return {routes: {one.name: [] for one in COMPARED} for routes in ROUTES}


def _with(variant: Variant, routes: int) -> Variant:
    return replace(variant, env={**variant.env, "BENCH_ROUTES": str(routes)})


def _added(result: RoutesCost, name: str) -> dict[int, list[float]]:
    return {routes: differences(by_setup[name], by_setup[UNTRACED.name]) for routes, by_setup in result.cpu_us.items()}


def tables(result: RoutesCost) -> list[Table]:
    """Return the table for people."""
    rows = []
    for variant in COMPARED:
        added = _added(result, variant.name)
        for routes, values in added.items():
            row = [variant.name, str(routes), Spread.of(result.cpu_us[routes][variant.name]).text(1)]
            if variant is UNTRACED:
                row += ["", ""]
            else:
                row += [Spread.of(values).text(1), Spread.of(ratios(values, added[ROUTES[0]])).text(2)]
            rows.append([*row, f"{Spread.of(result.spans[routes][variant.name]).median:.2f}"])
    rounds = len(result.cpu_us[ROUTES[0]][UNTRACED.name])
    columns = (
        "set-up",
        "routes",
        "CPU us/request",
        "added, us",
        "added / added with one route",
        "spans received/request",
    )
    return [Table(f"{rounds} rounds of {result.requests} requests; median (least to greatest)", columns, rows)]


def reading(result: RoutesCost) -> list[str]:
    """Return what the figures mean."""
    added = _added(result, STAGETRACE.name)
    us = {routes: Spread.of(values).text(1, " us") for routes, values in added.items()}
    return ["stagetrace adds " + ", ".join(f"{us[routes]} with {routes} routes" for routes in ROUTES) + "."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/routes_cost.py --rounds 5 --json routes.json")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--requests", type=int, default=10_000, help="measured in each round and set-up")
    args = arguments.parse_args()
    show(measure(args.rounds, args.requests), tables, reading, args.json)


if __name__ == "__main__":
    main()
