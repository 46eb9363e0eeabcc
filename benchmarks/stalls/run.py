"""Plant stalls whose line of code is known in real services under light load, and compare the recorded line with it.

A process of its own serves all stalls of a server, one after the other, beside a few ordinary requests a second. Only
the benchmark knows which request stalls how: it gives each its trace id, and receives the spans over OTLP. Right is a
`sla.breach.code` that names the marked line of `planted.py`, or any line of a marked statement of several lines; for a
request that waits for another one it is the line of that other one. A request without a breach counts as wrong.
`--in-turn` sends one stall of 150 ms right after the other instead, and nothing beside them.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.ground_truth.client import Client
from benchmarks.ground_truth.processes import service
from benchmarks.ground_truth.received import attributes, entry_spans, receiver
from benchmarks.measure import Table, parser, progress, show, wilson
from benchmarks.stalls.cases import ALONE, COLLECTIONS, HEAP, SERVERS, SHORTER_MS, STALLS, Server, Stall
from benchmarks.stalls.planted import HERE, lines
from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from benchmarks.receiver import Keep

POLICY: Final = "* within 50ms"
RATE: Final = 4.0  # ordinary requests a second
ARRIVE_WITHIN_S: Final = 15
CODE: Final = re.compile(r"(.+):(\d+) in .+")


@dataclass(frozen=True)
class Seen:
    """One planted stall, and what its entry span carries."""

    stall: str
    server: str
    code: str
    is_right: bool
    samples: int
    cause: str
    evidence: str


@dataclass(frozen=True)
class Result:
    """All planted stalls."""

    seed: int
    seconds: float
    seen: list[Seen]


def measure(
    servers: Sequence[Server], stalls: Sequence[str], times: int, seed: int, *, in_turn: bool = False
) -> Result:
    """Plant each stall in each server that has it; `in_turn`: one right after the other."""
    began = time.monotonic()
    seen: list[Seen] = []
    for server in servers:
        planted = [STALLS[name] for name in server.stalls if name in stalls]
        if planted:
            seen += _serve(server, planted, times, random.Random(f"{seed} {server.name}"), in_turn=in_turn)
            of_server = [one for one in seen if one.server == server.name]
            right = sum(one.is_right for one in of_server)
            progress(f"{time.monotonic() - began:5.0f} s  {server.name}: {right} of {len(of_server)} right")
    return Result(seed, time.monotonic() - began, seen)


def _serve(server: Server, stalls: Sequence[Stall], times: int, chance: random.Random, *, in_turn: bool) -> list[Seen]:
    """Serve, plant, and return what was recorded of each stalled request."""
    with receiver() as (endpoint, keep):
        environment = {
            "STAGETRACE": "1",
            "STAGETRACE_SLA": POLICY,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        }
        with service(server.argv, environment, server.python(), server.ready) as (port, pids):
            client = Client(port, pids, chance)
            asyncio.run((_in_turn if in_turn else _drive)(server, stalls, client, times))
            wanted = {one.trace_id: one.truth for one in client.asked if one.truth is not None}
            _wait_for(wanted, keep)
        spans = entry_spans(keep.bodies)
    missing = [name for trace_id, name in wanted.items() if trace_id not in spans]
    if missing:
        raise SystemExit(f"{server.name}: {len(missing)} requests have not arrived as spans: {Counter(missing)}")
    return [_seen(STALLS[name], server, spans[trace_id]) for trace_id, name in wanted.items()]


async def _drive(server: Server, stalls: Sequence[Stall], client: Client, times: int) -> None:
    """Let stalls follow each other amid ordinary requests."""
    traffic = asyncio.create_task(client.steadily([server.ordinary], RATE))
    try:
        for stall in stalls:
            if stall.name in COLLECTIONS:
                await server.fill_heap(client, HEAP)
            await server.ask(client, stall.planted)  # the first call makes what the later ones use
            for _ in range(times):
                await stall.episode(client, server)
                await asyncio.sleep(client.chance.uniform(0.0, 0.05))
                if traffic.done():
                    return  # it failed, and is reported below
    finally:
        traffic.cancel()
        with suppress(asyncio.CancelledError):
            await traffic


async def _in_turn(server: Server, stalls: Sequence[Stall], client: Client, times: int) -> None:
    """Let one client send those stalls that a request has alone, one right after the other."""
    alone = [stall.name for stall in stalls if stall.name in ALONE]
    for name in alone:
        await server.ask(client, name, SHORTER_MS)  # the first call makes what the later ones use
    for _ in range(times):
        for name in alone:
            await server.ask(client, name, SHORTER_MS, truth=name)


def _wait_for(wanted: Mapping[str, str], keep: Keep) -> None:
    deadline = time.monotonic() + ARRIVE_WITHIN_S
    while time.monotonic() < deadline and not wanted.keys() <= entry_spans(keep.bodies).keys():
        time.sleep(0.2)


def _seen(stall: Stall, server: Server, span: Span) -> Seen:
    carried = attributes(span.attributes)
    code = str(carried.get(semconv.SLA_BREACH_CODE, ""))
    events = [attributes(event.attributes) for event in span.events if event.name == semconv.STALL]
    if not carried.get("sla.breached"):
        code = "no breach"
    return Seen(
        stall.name,
        server.name,
        code or "no line",
        is_right(code, stall.planted),
        max((int(event.get(semconv.STALL_OUT_OF, 0)) for event in events), default=0),
        str(carried.get("sla.breach.cause", "")),
        str(carried.get("sla.breach.evidence", "")),
    )


def is_right(code: str, planted: str) -> bool:
    """Return whether `sla.breach.code` names a line of what was planted."""
    named = CODE.fullmatch(code)
    return named is not None and named[1] == HERE and int(named[2]) in lines(planted)


# --- the report


def tables(result: Result) -> list[Table]:
    """Return the tables for people."""
    rows = []
    for server in dict.fromkeys(one.server for one in result.seen):
        for stall in dict.fromkeys(one.stall for one in result.seen if one.server == server):
            some = [one for one in result.seen if (one.stall, one.server) == (stall, server)]
            others = Counter(one.code for one in some if not one.is_right)
            instead = ", ".join(f"{code} ({count})" for code, count in others.most_common(3))
            samples = statistics.median(one.samples for one in some)
            right = sum(one.is_right for one in some)
            rows.append([stall, server, f"{right} of {len(some)}", f"{samples:.0f}", instead])
    columns = ("stall", "server", "right line", "samples (median)", "seen instead")
    return [
        Table("Lines of code, by what was planted", columns, rows),
        *(_shares(of, result) for of in ("stall", "server")),
    ]


def _shares(of: str, result: Result) -> Table:
    """Return the share of right lines by the values of an attribute."""
    groups: dict[str, list[Seen]] = {}
    for one in result.seen:
        groups.setdefault(getattr(one, of), []).append(one)
    rows = []
    for name, some in {**groups, "all": result.seen}.items():
        right = sum(one.is_right for one in some)
        least, most = wilson(right, len(some))
        share = f"{right / len(some):.1%} ({right}/{len(some)})"
        rows.append([name, share, f"{least:.1%} to {most:.1%}"])
    return Table(f"Right lines, by {of} (Wilson's intervals)", (of, "right", "95 % interval"), rows)


def reading(result: Result) -> list[str]:
    """Return what the figures mean."""
    low = Counter((one.stall, one.server) for one in result.seen if not one.is_right)
    whole = Counter((one.stall, one.server) for one in result.seen)
    below = [f"{stall} ({server})" for (stall, server), count in low.items() if count / whole[stall, server] > 0.05]
    lines_ = [f"Seed {result.seed}, in {result.seconds / 60:.0f} minutes."]
    return [*lines_, f"Below 95 %: {', '.join(below) or 'none'}."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python -m benchmarks.stalls.run --times 5 --only lock sleep")
    arguments.add_argument("--seed", type=int, default=1, help="from which the times of requests are drawn")
    arguments.add_argument("--times", type=int, default=30, help="to plant each stall; 30 take forty minutes")
    arguments.add_argument("--only", nargs="+", metavar="KIND", choices=list(STALLS), help=f"of {', '.join(STALLS)}")
    names = [server.name for server in SERVERS]
    arguments.add_argument("--server", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}")
    arguments.add_argument("--in-turn", action="store_true", help="one stall right after the other, and nothing beside")
    arguments.add_argument("--wrong", action="store_true", help="show the evidence of each that has another line")
    args = arguments.parse_args()
    servers = [server for server in SERVERS if args.server is None or server.name in args.server]
    result = measure(servers, args.only or list(STALLS), args.times, args.seed, in_turn=args.in_turn)
    show(result, tables, reading, args.json)
    for one in result.seen:
        if args.wrong and not one.is_right:
            print(f"{one.stall}, {one.server}: {one.code} ({one.samples} samples); {one.cause}: {one.evidence}")


if __name__ == "__main__":
    main()
