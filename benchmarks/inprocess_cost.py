"""Measure the CPU that recording adds to a request, without the noise of a server and its sockets.

The application is called as a server would call it, in its own process on one core, one request after the other. The
figure is the CPU time of that process: all its threads and the exports to a real receiver on another core included.
Each round runs every set-up in a fresh process, all side by side, each for some requests in turn: other work of the
machine affects all alike, and they do not preempt each other. The handler (`app_staged.py`) is asynchronous and
computes next to nothing, so the untraced figure is the least that a request costs.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import others
from benchmarks.measure import (
    HTTP_ENDPOINT,
    SETTLE_S,
    STAGETRACE,
    STAGETRACE_SAMPLED,
    STOCK,
    STOCK_SAMPLED,
    UNTRACED,
    Spread,
    Table,
    Variant,
    differences,
    only,
    parser,
    progress,
    ratios,
    rotated,
    running_in_turns,
    show,
)

WARM_UP = 1000
BLOCK = 100
FLASK_ONLY = only("flask")


@dataclass(frozen=True)
class Server:
    """One kind of server: the script that calls an application as that server would, its options, its set-ups.

    The first set-up is untraced, the second the stock one.
    """

    title: str
    script: str
    options: tuple[str, ...]
    variants: tuple[Variant, ...]
    has_others: bool = False  # whether other libraries can be switched on in it


def staged(variant: Variant, how: str, name: str | None = None) -> Variant:
    """Return the variant with stages marked in the handler: see `app_staged`."""
    return replace(variant, name=name or variant.name, env={**variant.env, "BENCH_STAGES": how})


LATE = replace(STAGETRACE, name="stagetrace, all late", env={**STAGETRACE.env, "STAGETRACE_SLA": "* within 1us"})

# One line for each kind of server.
SERVERS = (
    Server(
        "FastAPI, asynchronous handler",
        "asgi.py",
        ("--app", "app_staged:app"),
        (
            UNTRACED,
            STOCK,
            staged(STOCK, "opentelemetry", "stock, three spans of one's own"),
            staged(STAGETRACE, "stagetrace"),
            staged(LATE, "stagetrace"),
            STOCK_SAMPLED,
            staged(STAGETRACE_SAMPLED, "stagetrace"),
        ),
        has_others=True,
    ),
    Server(
        "Flask, called by WSGI",
        "wsgi.py",
        ("--app", "app_flask:app"),
        (
            UNTRACED,
            replace(STOCK, env=FLASK_ONLY),
            staged(STAGETRACE, "stagetrace"),
            replace(STOCK_SAMPLED, env={**STOCK_SAMPLED.env, **FLASK_ONLY}),
            staged(STAGETRACE_SAMPLED, "stagetrace"),
        ),
    ),
)


@dataclass(frozen=True)
class InProcessCost:
    """By server and variant, one figure a round: CPU microseconds per request, spans received per request."""

    requests: int
    cpu_us: dict[str, dict[str, list[float]]]
    spans: dict[str, dict[str, list[float]]]


def measure(rounds: int, requests: int, *, with_others: bool = False) -> InProcessCost:
    """Run all set-ups of all servers `rounds` times."""
    result = InProcessCost(requests, {}, {})
    for server in SERVERS:
        variants = [*server.variants, *(_others() if with_others and server.has_others else ())]
        cpu = result.cpu_us[server.title] = {variant.name: [] for variant in variants}
        spans = result.spans[server.title] = {variant.name: [] for variant in variants}
        for number in range(rounds):
            for name, (cpu_us, spans_each) in _round(server, variants, number, requests).items():
                cpu[name].append(cpu_us)
                spans[name].append(spans_each)
                progress(f"round {number + 1}/{rounds}  {name:32} {cpu_us:6.1f} us a request")
    return result


def _round(server: Server, variants: list[Variant], number: int, requests: int) -> dict[str, tuple[float, float]]:
    """Return CPU microseconds and spans received per request, by variant."""
    shape = ("--warm-up", str(WARM_UP), "--settle", str(SETTLE_S))
    found = {}
    with ExitStack() as stack:
        running = []
        for variant in rotated(variants, number):
            one = stack.enter_context(running_in_turns(variant, server.script, *server.options, *shape))
            one.wait()
            running.append(one)
        for block in range(requests // BLOCK):
            for one in rotated(running, block):
                one.ask(BLOCK)
        for one in running:
            measured = one.end()
            asked = measured["requests"]
            spans = one.receiver.take() / (asked + WARM_UP)
            found[one.variant.name] = measured["cpu_s"] / asked * 1e6, spans
    return found


def _others() -> list[Variant]:
    python = others.installed()
    found = []
    for name, version in others.versions().items():
        wrapper = (str(python.parent / "ddtrace-run"),) if name == "ddtrace" else ()
        found.append(Variant(f"{name} {version}", wrapper, others.environment(name, HTTP_ENDPOINT), str(python)))
    return found


def tables(result: InProcessCost) -> list[Table]:
    """Return the tables for people."""
    return [_table(title, result) for title in result.cpu_us]


def _table(title: str, result: InProcessCost) -> Table:
    cpu_us = result.cpu_us[title]
    base = cpu_us[UNTRACED.name]
    stock = differences(cpu_us[STOCK.name], base)
    rows = []
    for name, values in cpu_us.items():
        row = [name, Spread.of(values).text(1)]
        if name == UNTRACED.name:
            row += ["", ""]
        else:
            added = differences(values, base)
            row += [Spread.of(added).text(1), Spread.of(ratios(added, stock)).text(3)]
        rows.append([*row, f"{Spread.of(result.spans[title][name]).median:.2f}"])
    rounds = f"{len(base)} rounds of {result.requests} requests; median (least to greatest)"
    columns = ("set-up", "CPU us/request", "added, us", "added / stock's added", "spans received/request")
    return Table(f"{title}: {rounds}", columns, rows)


def reading(result: InProcessCost) -> list[str]:
    """Return what the figures mean."""
    return [line for title in result.cpu_us for line in _reading(title, result.cpu_us[title])]


def _reading(title: str, cpu_us: dict[str, list[float]]) -> list[str]:
    added = {name: differences(values, cpu_us[UNTRACED.name]) for name, values in cpu_us.items()}
    us = {name: Spread.of(values).text(1, " us") for name, values in added.items()}
    times = Spread.of(ratios(added[STAGETRACE.name], added[STOCK.name])).text(2)
    whole = (
        f"{title}: stagetrace adds {us[STAGETRACE.name]} to a request, stages, verdict, encoding and sending included; "
        f"{times} times what stock tracing adds ({us[STOCK.name]})."
    )
    sampled = (
        f"At 1 % sampling stagetrace adds {us[STAGETRACE_SAMPLED.name]}, and every request is judged and counted; "
        f"stock adds {us[STOCK_SAMPLED.name]} and records nothing of the other 99 %."
    )
    return [whole, sampled]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/inprocess_cost.py --rounds 7 --others --json cost.json")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--requests", type=int, default=4000, help="measured in each round and set-up")
    arguments.add_argument("--others", action="store_true", help=f"{', '.join(others.SHOWN)} too, installed if need be")
    args = arguments.parse_args()
    show(measure(args.rounds, args.requests, with_others=args.others), tables, reading, args.json)


if __name__ == "__main__":
    main()
