"""Produce each cause of a breach by real means, in real services under load, and compare the cause named with it.

A process of its own serves each case three times: from its first requests on, under light traffic, and under heavier
traffic. Only the benchmark knows what made a request slow: it gives each request its trace id, and receives the spans
over OTLP. All times, sizes and gaps are drawn from the seed. The benchmark also reads, from outside, for how long the
service's threads were without a CPU during each request: on a machine with other work that is a cause that the
benchmark did not produce. Ordinary loads (`ordinary.py`) follow the injected faults, with figures of their own.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.causes.dependency import dependency
from benchmarks.causes.faults import CASES, Case
from benchmarks.causes.matrix import CONTENTION, Named, matrix, parts_exceed, shares
from benchmarks.causes.ordinary import ORDINARY
from benchmarks.ground_truth.client import Asked, Client
from benchmarks.ground_truth.processes import service
from benchmarks.ground_truth.received import attributes, entry_spans, receiver
from benchmarks.measure import parser, progress, show, text
from benchmarks.run import machine, moment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.measure import Table

WITHIN_MS: Final = 60
CONTROL_MS: Final = 3
POLICY: Final = (
    f"GET /hold within 60s; GET /occupy within 60s; GET /control within {CONTROL_MS}ms; * within {WITHIN_MS}ms"
)
LOADS: Final = {"first requests": 0.0, "5 requests/s": 5.0, "20 requests/s": 20.0}
PARTS: Final = {"Causes made": CASES, "Ordinary load": ORDINARY}
EVERY: Final = (*CASES, *ORDINARY)
WARM_UP: Final = 30
HALF: Final = 0.5  # of the excess


@dataclass(frozen=True)
class Result:
    """All breaches, and the number of slow requests that met their objective all the same."""

    seed: int
    seconds: float
    named: list[Named]
    kept: dict[str, int]


def measure(cases: Sequence[Case], seed: int, breaches: int, loads: Sequence[str] = tuple(LOADS)) -> Result:
    """Produce about `breaches` breaches by each case."""
    named: list[Named] = []
    kept: dict[str, int] = {}
    began = time.monotonic()
    with dependency() as url:
        for case in cases:
            for number, load in enumerate(loads):
                chance = random.Random(f"{seed} {case.name} {load}")
                wanted = breaches * (number + 1) // len(loads) - breaches * number // len(loads)
                with TemporaryDirectory() as folder:
                    some, good = _serve(case, load, chance, wanted, url, folder)
                named += some
                kept[case.name] = kept.get(case.name, 0) + good
            of_case = [one for one in named if one.case == case.name]
            right = sum(one.is_right for one in of_case)
            progress(f"{time.monotonic() - began:5.0f} s  {case.name}: {right} of {len(of_case)} right")
    return Result(seed, time.monotonic() - began, named, kept)


def _serve(case: Case, load: str, chance: random.Random, wanted: int, url: str, folder: str) -> tuple[list[Named], int]:
    """Serve one case under one load, until enough requests were slow; return breaches and the number of others."""
    with receiver() as (endpoint, keep):
        database = f"{folder}/scores.db"
        environment = {
            "BENCH_DATABASE": database,
            "BENCH_DEPENDENCY": url,
            "STAGETRACE": "1",
            "STAGETRACE_SLA": POLICY,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_MAX_QUEUE_SIZE": "65536",
        }
        with service(case.server, environment) as (port, pids):
            client = Client(port, pids, chance, database)
            asyncio.run(_drive(case, client, LOADS[load], wanted))
    spans = {trace_id: attributes(span.attributes) for trace_id, span in entry_spans(keep.bodies).items()}
    slow = [one for one in client.asked if one.truth is not None]
    missing = [one for one in slow if one.trace_id not in spans]
    if missing:
        raise SystemExit(f"{case.name}: {len(missing)} of {len(slow)} requests have not arrived as spans")
    found = [_named(case, load, one, spans[one.trace_id]) for one in slow]
    return [one for one in found if one.word], sum(not one.word and one.truth != CONTENTION for one in found)


async def _drive(case: Case, client: Client, rate: float, wanted: int) -> None:
    """Warm up, then let episodes follow each other amid other traffic."""
    for method, path in case.normal:
        await client.ask(path, method=method)  # whatever is made at a first call
    if rate or case.needs_usual:
        for number in range(WARM_UP * len(case.normal)):
            method, path = case.normal[number % len(case.normal)]
            await client.ask(path, method=method)
    async with AsyncExitStack() as stack:
        if case.around is not None:
            await stack.enter_async_context(case.around(client))
        traffic = None
        if rate and not case.is_quiet:
            traffic = asyncio.create_task(client.steadily(case.traffic, rate))
        try:
            while sum(one.truth is not None for one in client.asked) < wanted:
                await case.episode(client)
                await asyncio.sleep(client.chance.uniform(0.0, 0.1))
                if traffic is not None and traffic.done():
                    break  # it failed, and is reported below
        finally:
            if traffic is not None:
                traffic.cancel()
                with suppress(asyncio.CancelledError):
                    await traffic


def _named(case: Case, load: str, asked: Asked, attributes: Mapping[str, Any]) -> Named:
    word = str(attributes.get("sla.breach.cause", ""))
    excess_ms = float(attributes.get("sla.overrun_ms", 0.0))
    withheld = asked.withheld_ms >= HALF * excess_ms
    evidence = str(attributes.get("sla.breach.evidence", ""))
    return Named(case.name, load, asked.truth or "", word, withheld, evidence, asked.trace_id)


# --- the report


INTRODUCTION: Final = """# Measured: causes named against causes produced

Written by `python benchmarks/causes/run.py --document docs/causes-measured.md`; [causes.md](causes.md) defines the
causes.

{how}

A breach counts as right if the cause named is the one produced; where nothing was produced, if it is `compute`,
`io_wait`, `mixed` or `unknown`. On ordinary loads each request draws what its time is spent on. If none of its parts
has a long tail and it is late all the same, other requests delayed it (`contention`), and each of these causes is
right: `socket_wait`, `pool_wait`, `cpu_wait`, `lock_wait`. The columns *without machine waits* exclude breaches that
are named `cpu_wait` without burners, where the kernel's count, read from outside, shows that the service's threads were
without a CPU for at least half of the overrun: that cause is true, and the benchmark did not produce it. Services and
burners run with priority over other work of the machine where that is allowed (`autogroup`), equal among themselves. No
seed used during development of the rules is shown.
"""


def tables(result: Result) -> list[Table]:
    """Return the tables for people."""
    found = []
    for title, cases in PARTS.items():
        names = [case.name for case in cases]
        named = [one for one in result.named if one.case in names]
        if named:
            names, loads = (list(dict.fromkeys(getattr(one, of) for one in named)) for of in ("case", "load"))
            found += [matrix(title, named), shares("case", named, names), shares("load", named, loads)]
    return found


def reading(result: Result) -> list[str]:
    """Return what the figures mean."""
    kept = sum(result.kept.values())
    wrong = Counter(f"{one.truth} named {one.word}" for one in result.named if not one.is_right)
    shown = []
    for title, cases in PARTS.items():
        named = [one for one in result.named if one.case in {case.name for case in cases}]
        if named:
            shown.append(f"{title}: {sum(one.is_right for one in named)} of {len(named)} breaches right")
    others = f"{kept} more requests were made slow and met their objective all the same"
    lines = [f"Seed {result.seed}, in {result.seconds / 60:.0f} minutes. {'. '.join(shown)}. {others}."]
    if wrong:
        lines.append(f"Wrong: {', '.join(f'{what} ({count})' for what, count in wrong.most_common())}.")
    over = sum(parts_exceed(one.evidence) for one in result.named)
    lines.append(f"Of {len(result.named)} sentences {over} count more time than what they name took.")
    return lines


def document(result: Result, facts: str) -> str:
    """Return it all as Markdown."""
    introduction = INTRODUCTION.format(how=(__doc__ or "").strip())
    return f"{introduction}\n{facts}\n## Figures\n\n{text(tables(result), reading(result))}\n"


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__, "python benchmarks/causes/run.py --seed 7 --breaches 30 --only 'slow collector'")
    arguments.add_argument("--seed", type=int, default=1, help="from which all times, sizes and gaps are drawn")
    arguments.add_argument("--breaches", type=int, default=24, help="to make by each case; 24 take five minutes")
    names = [case.name for case in EVERY]
    arguments.add_argument("--only", nargs="+", metavar="CASE", choices=names, help=f"of {', '.join(names)}")
    arguments.add_argument("--load", nargs="+", choices=list(LOADS), default=list(LOADS), help="under which loads")
    arguments.add_argument("--wrong", action="store_true", help="show the evidence of each that was named wrong")
    arguments.add_argument("--document", type=Path, help="what to write, too")
    args = arguments.parse_args()
    before = moment()
    cases = [case for case in EVERY if args.only is None or case.name in args.only]
    result = measure(cases, args.seed, args.breaches, args.load)
    show(result, tables, reading, args.json)
    for one in result.named:
        if args.wrong and not one.is_right:
            print(f"{one.case}, {one.load}: {one.truth} named {one.word}{' (withheld)' * one.withheld}: {one.evidence}")
    if args.document is not None:
        args.document.write_text(document(result, machine(before, result.seconds / 60)))


if __name__ == "__main__":
    main()
