"""Which service owns the time of a breach: from its slowest stage down the trace, call by call.

Spans are as `span_tree` describes them, with `name`, `attributes` and `duration_ns` beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.span_tree import CLIENT, SERVER
from stagetrace.sla.verdict import peer_of
from stagetrace.span_attributes import stage_totals, text

WIRE: Final = "wire"  # in place of a stage: between a call as its client and as its server saw it


class Hop(NamedTuple):
    """One step down: the slowest stage of a service, or the wire from it (`service`) to another (`peer`)."""

    service: str
    stage: str | None
    duration_ms: float
    peer: str | None = None  # the callee that the stage waited for most of its time


@dataclass(frozen=True)
class Owner:
    """Where the time of a breach went. `path` leads down to it; where the trace ends too early, there is a `reason`."""

    path: tuple[Hop, ...]
    reason: str | None = None

    @property
    def last(self) -> Hop:
        """Return the last step: the owner, as far as the trace goes."""
        return self.path[-1]

    @property
    def complete(self) -> bool:
        """Return whether the trace goes as far as the calls do."""
        return self.reason is None


def owner_of(entry: Any, spans: Sequence[Any]) -> Owner:
    """Return the owner of the time of a breached entry span; `spans` are those of its trace.

    Where its slowest stage waited for one peer during at least half of its time, that peer's entry spans are
    examined in the same way, unless the wire in between took longer than they did.
    """
    below: dict[str, list[Any]] = {}
    for span in spans:
        if span.parent_span_id is not None:
            below.setdefault(span.parent_span_id, []).append(span)
    path: list[Hop] = []
    entries, seen = [entry], {entry.span_id}
    while True:
        service = entries[0].service
        stage, visits = _slowest(entries, spans, below)
        calls = list(_calls(visits, below))
        took_ns = sum(span.duration_ns for span in visits)
        peer, _ = peer_of(
            [(span.start_unix_nano, span.end_unix_nano) for span in visits],
            [(_peer(call), call.start_unix_nano, call.end_unix_nano) for call in calls],
        )
        path.append(Hop(service, stage, took_ns / 1e6, peer))
        if peer is None:
            return Owner(tuple(path))
        calls = [call for call in calls if _peer(call) == peer]
        served = [
            (call, server)
            for call in calls
            for server in below.get(call.span_id, ())
            if server.kind == SERVER and server.span_id not in seen
        ]
        called_ns, served_ns = _total(call for call, _ in served), _total(server for _, server in served)
        if 2 * called_ns < _total(calls) or not served:
            return Owner(tuple(path), f"{peer}, which {service} waited for, has left no trace here")
        if called_ns > 2 * served_ns:
            return Owner((*path, Hop(service, WIRE, (called_ns - served_ns) / 1e6, served[0][1].service)))
        entries = [server for _, server in served]
        seen.update(server.span_id for server in entries)


def _total(spans: Iterable[Any]) -> int:
    return sum(span.duration_ns for span in spans)


def _peer(call: Any) -> str:
    return semconv.peer(call.attributes) or call.name


def _slowest(entries: Sequence[Any], spans: Sequence[Any], below: dict[str, list[Any]]) -> tuple[str | None, list[Any]]:
    """Return the stage of these entry spans that is to blame, and its spans: without stages, they themselves."""
    stage = text(entries[0].attributes, semconv.SLA_BREACH_STAGE) if len(entries) == 1 else None
    if stage is None:
        totals: dict[str, float] = {}
        for entry in entries:
            for name, total in stage_totals(entry, spans).items():
                totals[name] = totals.get(name, 0.0) + total
        stage = max(totals, key=lambda name: totals[name], default=None)
    visits = [
        span
        for entry in entries
        for span in below.get(entry.span_id, ())
        if stage is not None and text(span.attributes, semconv.ML_STAGE) == stage
    ]
    return (stage, visits) if visits else (stage, list(entries))


def _calls(tops: Iterable[Any], below: dict[str, list[Any]]) -> Iterator[Any]:
    """Yield the outermost calls to others beneath these spans, within the same service."""
    pending = [child for top in tops for child in below.get(top.span_id, ())]
    seen: set[str] = set()
    while pending:
        span = pending.pop()
        if span.span_id in seen or span.kind == SERVER:
            continue
        seen.add(span.span_id)
        if span.kind == CLIENT:
            if not semconv.is_embedded(span.attributes):
                yield span
        else:
            pending += below.get(span.span_id, ())
