"""Measure what a request costs the more objectives a policy has.

Requests pass through the real adapter of ASGI, one after the other, in one process, and are tiled, judged and encoded;
their bytes go nowhere. The application responds at once. The figure is the CPU time of that thread. Policies take turns
block by block, in another order each round, so other work of the machine affects all alike. *added* is what a request
costs more than the same one without recording, and *1,000 / 1* compares that of a thousand objectives with that of one.
`--before` compares the same with the source of another checkout, for one objective without conditions: a process for
each block, in turn.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    SERVER_CORE,
    Spread,
    Table,
    clean_environment,
    differences,
    parser,
    progress,
    ratios,
    rotated,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

MANY = 1_000
ONE_RULE = "POST /predict/0 within 1s"
UNTRACED, ONE = "without recording", "one objective"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
BODY = {"type": "http.response.body", "body": b"{}"}
WARM_UP = 2_000


@dataclass(frozen=True)
class Case:
    """Requests, and the policies of one and of many objectives that judge them."""

    name: str
    one: Any
    many: Any
    path: Callable[[int], str] = lambda _: "/predict/0"
    tier: Callable[[int], str] | None = None  # an attribute that the application sets
    plan: Callable[[int], str] | None = None  # a header of the request


@dataclass(frozen=True)
class ObjectivesCost:
    """By case and policy, one figure a round: CPU microseconds per request; and of two checkouts, if there are two."""

    requests: int
    cpu_us: dict[str, dict[str, list[float]]]
    before_us: dict[str, list[float]]


def cases() -> list[Case]:
    """Return the cases; in all of them the many objectives are different ones."""
    from stagetrace import Policy
    from stagetrace.policy.objective import Condition, Objective

    def policy(count: int, route: Callable[[int], str], condition: Callable[[int], Condition] | None) -> Any:
        rules = [
            Objective(
                f"o{number}", "POST", route(number), 10**9, conditions=() if condition is None else (condition(number),)
            )
            for number in range(count)
        ]
        return Policy((*rules, Objective("rest", None, "*", 10**9)))

    def case(name: str, condition: Callable[[int], Condition], **requests: Any) -> Case:
        return Case(name, *(policy(count, lambda _: "*", condition) for count in (1, MANY)), **requests)

    def of_many(number: int) -> str:
        return f"t{number % MANY}"

    def unique(number: int) -> str:
        return f"t{number % MANY}-{number}"

    def by_route(number: int) -> str:
        return f"/predict/{number}"

    def in_turn(number: int) -> str:
        return by_route(number % MANY)

    return [
        Case("by route, one route", policy(1, by_route, None), policy(MANY, by_route, None)),
        Case("by route, 1,000 routes in turn", policy(1, by_route, None), policy(MANY, by_route, None), in_turn),
        case("by an attribute, 1,000 values", lambda number: Condition("tenant.tier", f"t{number}"), tier=of_many),
        case("by a header, 1,000 values", lambda number: Condition("header:x-plan", f"t{number}"), plan=of_many),
        case("by an attribute, each value once", lambda number: Condition("tenant.tier", f"t{number}"), tier=unique),
    ]


class Nowhere:
    """Takes the bytes of spans."""

    def put(self, *_: Any, **__: Any) -> None:
        """Take them."""


class Service:
    """An application inside the adapter of ASGI, with the recorder of our own provider."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import DEFAULT_ON

        from stagetrace import KeepBreaches, SLASpanProcessor
        from stagetrace.request.context import here
        from stagetrace.runtime.runtime import runtime
        from stagetrace.sla.entry_recorder import EntryRecorder

        provider = TracerProvider(KeepBreaches(DEFAULT_ON), shutdown_on_exit=False)
        self.processor = SLASpanProcessor(ONE_RULE, provider._active_span_processor)  # noqa: SLF001
        self.processor.has_others = False
        here.recorder = EntryRecorder(provider, self.processor, [Nowhere()])  # type: ignore[list-item]
        runtime.ready = True

    def block(self, case: Case, first: int, requests: int, *, traced: bool) -> float:
        """Return the CPU microseconds of each of some requests."""
        tier, plan, path = case.tier, case.plan, case.path
        scopes = []
        for number in range(first, first + requests):
            headers = [(b"host", b"bench:8000"), (b"user-agent", b"bench")]
            if plan is not None:
                headers.append((b"x-plan", plan(number).encode()))
            scopes.append((scope_of(path(number), headers), None if tier is None else tier(number)))
        call = self._traced if traced else _untraced
        gc.collect()
        began = time.thread_time_ns()
        for scope, value in scopes:
            run(call(scope, value))
        return (time.thread_time_ns() - began) / requests / 1e3

    @staticmethod
    async def _traced(scope: dict[str, Any], tier: str | None) -> None:
        from stagetrace.protocols.asgi import serve

        async def app(scope: Any, _receive: Any, send: Any) -> None:
            scope["stagetrace.request"].set_route(scope["path"])
            await application(tier, send)

        await serve(app_of, app, scope, receive, sent)


async def app_of(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Call an application as a server does."""
    await app(scope, receive, send)


async def application(tier: str | None, send: Any) -> None:
    """Respond at once."""
    if tier is not None:
        from opentelemetry import trace

        trace.get_current_span().set_attribute("tenant.tier", tier)
    await send(START)
    await send(BODY)


async def _untraced(_scope: dict[str, Any], tier: str | None) -> None:
    await application(tier, sent)


async def receive() -> dict[str, Any]:
    """Return an empty body."""
    return {"type": "http.request", "body": b""}


async def sent(_message: Any) -> None:
    """Take a message of a response."""


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise RuntimeError("it waits")


def scope_of(path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Return a scope as of uvicorn."""
    return {
        "type": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }


def measure(rounds: int, requests: int, before: Path | None) -> ObjectivesCost:
    """Measure all cases, and the two checkouts."""
    os.sched_setaffinity(0, {SERVER_CORE})
    service = Service()
    asyncio.set_event_loop(asyncio.new_event_loop())
    cpu_us: dict[str, dict[str, list[float]]] = {}
    for case in cases():
        many = f"{MANY:,} objectives"
        policies = {UNTRACED: None, ONE: case.one, many: case.many}
        found = cpu_us[case.name] = {name: [] for name in policies}
        first = 0
        for number in range(-1, rounds):  # the first one warms up
            for name in rotated(list(policies), number):
                service.processor.policy = policies[name] or case.one
                block = requests if number >= 0 else WARM_UP
                took = service.block(case, first, block, traced=name != UNTRACED)
                first += block
                if number >= 0:
                    found[name].append(took)
        progress(f"{case.name:34} {'  '.join(f'{name} {Spread.of(found[name]).text(1)}' for name in policies)} us")
    return ObjectivesCost(requests, cpu_us, {} if before is None else compare(before, rounds, requests))


def compare(before: Path, rounds: int, requests: int) -> dict[str, list[float]]:
    """Measure one objective without conditions with this source and with that of another checkout."""
    sources = {"this source": Path(__file__).resolve().parent.parent, "the other": before}
    found: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(rounds):
        for name in rotated(list(sources), number):
            command = [sys.executable, str(Path(__file__).resolve()), "--once", str(requests)]
            env = {**clean_environment(), "PYTHONPATH": str(sources[name] / "src")}
            output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name].append(json.loads(output))
        progress(f"round {number + 1}/{rounds}  {'  '.join(f'{name} {found[name][-1]:.2f}' for name in found)} us")
    return found


def once(requests: int) -> float:
    """Return the CPU microseconds that recording adds to a request, least of some blocks."""
    os.sched_setaffinity(0, {SERVER_CORE})
    service = Service()
    case = Case("", None, None)
    service.block(case, 0, WARM_UP, traced=True)
    size = max(requests // 10, 1)
    traced = min(service.block(case, 0, size, traced=True) for _ in range(10))
    return traced - min(service.block(case, 0, size, traced=False) for _ in range(10))


def tables(result: ObjectivesCost) -> list[Table]:
    """Return the tables for people."""
    rows = []
    rounds = 0
    for case, found in result.cpu_us.items():
        base, one, many = found.values()
        rounds = len(base)
        added = [differences(values, base) for values in (one, many)]
        texts = [Spread.of(values).text(1) for values in added]
        rows.append([case, *texts, Spread.of(ratios(added[1], added[0])).text(2)])
    title = f"{rounds} rounds of {result.requests} requests; median (least to greatest)"
    columns = ("objectives", "added with 1, us", "added with 1,000, us", "1,000 / 1")
    made = [Table(title, columns, rows)]
    if result.before_us:
        new, old = result.before_us.values()
        row = [Spread.of(old).text(2), Spread.of(new).text(2), Spread.of(ratios(new, old)).text(3)]
        made.append(Table(f"{len(new)} rounds", ("added by the other source, us", "added by this, us", "ratio"), [row]))
    return made


def reading(result: ObjectivesCost) -> Sequence[str]:
    """Return what the figures mean."""
    worst = max(
        (Spread.of(ratios(differences(many, base), differences(one, base))).median, case)
        for case, (base, one, many) in ((case, found.values()) for case, found in result.cpu_us.items())
    )
    return [f"A thousand objectives cost a request at most {worst[0]:.2f} times what one costs ({worst[1]})."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/objectives_cost.py --rounds 15 --before /tmp/before")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--requests", type=int, default=2_000, help="measured in each round and set-up")
    arguments.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, with its own build")
    arguments.add_argument("--once", type=int, metavar="REQUESTS", help="measure one objective, print one figure")
    args = arguments.parse_args()
    if args.once:
        print(once(args.once))
        return
    show(measure(args.rounds, args.requests, args.before), tables, reading, args.json)


if __name__ == "__main__":
    main()
