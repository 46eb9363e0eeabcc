"""Traces of made microservices, with faults injected: a call graph with fan-out, retries, databases and consumers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stagetrace.store.base import SpanRow

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTS: Final = ("cpu", "delay", "loss", "error", "database")
_MS: Final = 1_000_000
_NOON: Final = 1_772_366_400_000_000_000


@dataclass(frozen=True)
class Call:
    """One operation of a service: what it does itself, and whom it calls meanwhile."""

    service: str
    operation: str
    own_ms: float
    calls: tuple[Call, ...] = ()
    parallel: bool = False
    asynchronous: bool = False
    queries: int = 0


@dataclass(frozen=True)
class Fault:
    """What is wrong with one service."""

    kind: str
    service: str
    strength: float = 1.0


@dataclass
class System:
    """Services that call each other, as one seed makes them. `routes`: the operations of the gateway."""

    seed: int
    services: int = 12
    with_kinds: bool = True
    routes: list[Call] = field(default_factory=list)
    skew_ns: dict[str, int] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        names = [f"service-{number}" for number in range(1, self.services)]
        self.skew_ns = {name: int(rng.normal(0, 2) * _MS) for name in names} | {"gateway": 0}
        for route in range(4):
            called = [str(name) for name in rng.permutation(names)[:7]]
            below = tuple(self._calls(rng, called, 0))
            self.routes.append(Call("gateway", f"GET /r{route}", 2.0, below, bool(route % 2)))

    def _calls(self, rng: np.random.Generator, names: list[str], depth: int) -> Iterator[Call]:
        while names:
            service = names.pop(0)
            taken = int(rng.integers(0, 3)) if depth < 3 else 0
            below, names[:] = names[:taken], names[taken:]
            yield Call(
                service,
                f"op-{rng.integers(2)}",
                float(rng.uniform(1, 20)),
                tuple(self._calls(rng, below, depth + 1)),
                parallel=bool(rng.random() < 0.4),
                asynchronous=bool(rng.random() < 0.1),
                queries=int(rng.integers(0, 3)),
            )

    def reached(self) -> list[str]:
        """Return the services that requests wait for: where a fault can be seen."""
        found: set[str] = set()
        pending = list(self.routes)
        while pending:
            call = pending.pop()
            found.add(call.service)
            pending += [one for one in call.calls if not one.asynchronous]
        return sorted(found - {"gateway"})

    def traces(self, count: int, rng: np.random.Generator, fault: Fault | None = None) -> list[list[SpanRow]]:
        """Return traces of all routes, in a mix that is not the same each time."""
        shares = rng.dirichlet(np.full(len(self.routes), 3.0))
        slower = {str(rng.choice(self.reached())): 1.15}  # that others vary too is no fault
        made = []
        for route in rng.choice(len(self.routes), count, p=shares):
            self.number += 1
            writer = _Writer(self, rng, fault, slower, f"{self.seed:08x}{self.number:024x}")
            writer.call(self.routes[route], None, _NOON + self.number * 50 * _MS)
            made.append(writer.spans)
        return made


class _Writer:
    """Writes the spans of one trace."""

    def __init__(
        self, system: System, rng: np.random.Generator, fault: Fault | None, slower: dict[str, float], trace_id: str
    ) -> None:
        self.system, self.rng, self.fault, self.slower, self.trace_id = system, rng, fault, slower, trace_id
        self.spans: list[SpanRow] = []

    def _has(self, kind: str, *services: str) -> bool:
        return self.fault is not None and self.fault.kind == kind and self.fault.service in services

    def _wire(self, *ends: str) -> int:
        """Return how long a message takes one way, in ns."""
        took = self.rng.lognormal(-1, 0.4)
        if self.fault is not None:
            if self._has("delay", *ends):
                took += self.rng.normal(40, 5) * self.fault.strength
            if self._has("loss", *ends) and self.rng.random() < 0.15:
                took += 200 * self.fault.strength
        return max(0, int(took * _MS))

    def _own(self, call: Call) -> int:
        took = call.own_ms * self.rng.lognormal(0, 0.35) * self.slower.get(call.service, 1.0)
        if self.fault is not None and self._has("cpu", call.service):
            took = took * (1 + 2 * self.fault.strength) + self.rng.exponential(10) * self.fault.strength
        return int(took * _MS)

    def _add(self, parent: str | None, service: str, name: str, kind: str, **more: Any) -> int:
        """Reserve a place; `_end` fills it in."""
        span_id = f"{len(self.spans) + 1:016x}"
        shown = kind if self.system.with_kinds else "UNSPECIFIED"
        self.spans.append(SpanRow(self.trace_id, span_id, parent, name, service, shown, 0, 0, more))
        return len(self.spans) - 1

    def _end(self, place: int, start: int, end: int, *, failed: bool = False) -> None:
        one = self.spans[place]
        skew, status = self.system.skew_ns[one.service], "ERROR" if failed else "UNSET"
        self.spans[place] = replace(one, start_unix_nano=start + skew, end_unix_nano=end + skew, status=status)

    def call(self, call: Call, parent: str | None, start: int) -> tuple[int, bool]:
        """Write what a service does for one request; return when it is done and whether it failed."""
        place = self._add(parent, call.service, call.operation, "CONSUMER" if call.asynchronous else "SERVER")
        me = self.spans[place].span_id
        own = self._own(call)
        at, failed = start + own // 2, False
        if self._has("error", call.service) and self.rng.random() < 0.6:
            self._end(place, start, start + own // 4, failed=True)
            return start + own // 4, True
        for _ in range(call.queries):
            at = self._query(call.service, me, at)
        ends = [at]
        for one in call.calls:
            end, broke = self._client(call.service, me, one, at)
            if not one.asynchronous:
                ends.append(end)
                failed |= broke
                at = at if call.parallel else end
        end = max(ends) + own - own // 2
        self._end(place, start, end, failed=failed)
        return end, failed

    def _client(self, caller: str, parent: str, call: Call, at: int) -> tuple[int, bool]:
        """Write a call as its client sees it; one that fails is tried once more."""
        if call.asynchronous:
            place = self._add(parent, caller, f"send {call.operation}", "PRODUCER")
            self._end(place, at, at + _MS // 10)
            self.call(call, self.spans[place].span_id, at + 5 * _MS)
            return at + _MS // 10, False
        failed, end = True, at
        for _ in range(2):
            place = self._add(parent, caller, f"call {call.service}/{call.operation}", "CLIENT")
            done, failed = self.call(call, self.spans[place].span_id, end + self._wire(caller, call.service))
            start, end = end, done + self._wire(caller, call.service)
            self._end(place, start, end, failed=failed)
            if not failed:
                break
        return end, failed

    def _query(self, service: str, parent: str, at: int) -> int:
        peer = {"server.address": f"db-of-{service}", "db.system.name": "postgresql"}
        place = self._add(parent, service, "SELECT", "CLIENT", **peer)
        took = int(self.rng.lognormal(0, 0.5) * _MS)
        if self.fault is not None and self._has("database", service):
            took += int(self.rng.normal(30, 5) * self.fault.strength * _MS)
        end = at + took + (self._wire(service) if self._has("delay", service) or self._has("loss", service) else 0)
        self._end(place, at, end)
        return end


def _branches(number: int, calls: dict[str, float]) -> list[SpanRow]:
    """Return a request of one vague route that calls some services, one after the other, for so many ms each."""
    at, spans = number * 10_000 * _MS, []
    end = at + _MS
    for place, (service, took) in enumerate(calls.items(), 2):
        ids = (f"{number:032x}", f"{place:016x}", f"{1:016x}")
        spans.append(SpanRow(*ids, f"call {service}", "shop", "CLIENT", end, end + int((took + 1) * _MS), {}))
        ids = (f"{number:032x}", f"{place + 100:016x}", f"{place:016x}")
        spans.append(SpanRow(*ids, f"do {service}", service, "SERVER", end, end + int(took * _MS), {}))
        end += int((took + 1) * _MS)
    return [SpanRow(f"{number:032x}", f"{1:016x}", None, "POST /graphql", "shop", "SERVER", at, end + _MS, {}), *spans]


def window(rng: np.random.Generator, first: int, shares: dict[str, float], **slower: float) -> list[list[SpanRow]]:
    """Return traces of which so large shares call each service, for 20 ms and so many more."""
    return [
        _branches(
            first + at + 1,
            {name: 20 * rng.lognormal(0, 0.2) + slower.get(name, 0)
             for name, share in shares.items() if rng.random() < share},
        )
        for at in range(200)
    ]  # fmt: skip
