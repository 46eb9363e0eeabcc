"""Learn what requests of a route usually take, in constant memory, from some of those that keep their promise."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv
from stagetrace.sla import evidence_machine as shortage
from stagetrace.sla.cause import GC, Usual, cause_of, evidence, stage_of
from stagetrace.sla.evidence_network import on_the_wire
from stagetrace.sla.verdict import WITHIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.sla.cause import Parts
    from stagetrace.sla.verdict import Verdict

MAX_ROUTES: Final = 256
MAX_SIZES: Final = 16
ENOUGH: Final = 20  # requests, before what they took is usual
LEARNED_FROM_EACH: Final = 64  # of so many requests one, once that is enough,
LEARNED_AFTER_NS: Final = 500_000_000  # and none so soon after the one before: it costs more than the recording does
WEIGHT: Final = 0.05  # of a request, among those before it

Route = tuple["str | None", str]


class _Means:
    """Means of what requests took, of which the later count for more."""

    __slots__ = ("count", "size", "stages", "times")

    def __init__(self) -> None:
        self.count = 0
        self.times: dict[str, float] = {}
        self.stages: dict[str, float] = {}
        self.size: float | None = None

    def add(self, parts: Parts) -> None:
        """Add one request."""
        self.count += 1
        weight = max(1 / self.count, WEIGHT)
        for means, took in ((self.times, parts.times), (self.stages, parts.stages)):
            for key in means.keys() | took.keys():
                before = means.get(key, 0.0)
                means[key] = before + weight * (took.get(key, 0) - before)
        if parts.size is not None:
            self.size = parts.size if self.size is None else self.size + weight * (parts.size - self.size)

    def usual(self) -> Usual | None:
        """Return what is usual; None if too few requests have told."""
        return Usual(dict(self.times), self.size, dict(self.stages)) if self.count >= ENOUGH else None


class Learned:
    """What is usual, by route and by size of the input, in powers of two."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._routes: dict[Route, dict[int | None, _Means]] = {}
        # For `wants`, without the lock: a miscount does no harm.
        self._seen: dict[Route, int] = {}
        self._wanted_at: dict[Route, int] = {}

    def wants(self, route: Route, now: int) -> bool:
        """Return whether to learn from this request of a route, which has ended now: the first ones, then a few."""
        seen = self._seen.get(route, 0)
        if not seen and len(self._seen) >= MAX_ROUTES:
            return False
        self._seen[route] = seen + 1
        if seen >= 2 * ENOUGH and (
            seen % LEARNED_FROM_EACH or 0 <= now - self._wanted_at.get(route, 0) < LEARNED_AFTER_NS
        ):
            return False
        self._wanted_at[route] = now
        return True

    def learn(self, route: Route, parts: Parts) -> None:
        """Learn from a request that has kept its promise."""
        shortage.tick()
        with self._lock:
            by_size = self._routes.setdefault(route, {})
            for key in (None, _bucket(parts.size)) if parts.size is not None else (None,):
                if key in by_size or len(by_size) <= MAX_SIZES:
                    by_size.setdefault(key, _Means()).add(parts)

    def usual(self, route: Route, size: int | None) -> tuple[Usual | None, Usual | None]:
        """Return what is usual for a route, and for inputs of this size, as far as it is known."""
        with self._lock:
            by_size = self._routes.get(route, {})
            means = by_size.get(None), by_size.get(_bucket(size)) if size is not None else None
            overall, of_this_size = (one.usual() if one is not None else None for one in means)
            return overall, of_this_size

    def explain(
        self, route: Route, verdict: Verdict, parts: Parts, attributes: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return what the entry span of a breach carries of its cause, besides its verdict's and `attributes`."""
        broken = verdict.broken
        if broken is None or broken.promise != WITHIN:
            return {}
        shortage.tick()
        usual, of_this_size = self.usual(route, parts.size)
        cause = cause_of(parts, broken.took_ns - broken.threshold_ns, usual, of_this_size)
        found: dict[str, Any] = {semconv.breach_part_ms(part): took / 1e6 for part, took in parts.times.items()}
        if parts.times.get(GC):
            found[semconv.GC_PAUSE_MS] = parts.times[GC] / 1e6
        if verdict.peer is not None or verdict.stage is None:
            return found  # the verdict has said it
        stage = stage_of(cause, parts, of_this_size or usual)
        if stage is not None:
            verdict = replace(verdict, stage=stage, stage_ns=parts.stages[stage])
        said = verdict.attributes()[semconv.SLA_BREACH_EVIDENCE]
        found[semconv.SLA_BREACH_CAUSE] = cause.word
        found[semconv.SLA_BREACH_STAGE] = verdict.stage
        found[semconv.SLA_BREACH_EVIDENCE] = f"{said}: {evidence(parts, cause, of_this_size or usual)}"
        found[semconv.SLA_BREACH_EVIDENCE] += on_the_wire(cause, attributes or {}) + shortage.asked(cause)
        if verdict.stage == semconv.HANDLER and not parts.is_recognised:
            found[semconv.SLA_BREACH_EVIDENCE] += "; no model was recognised"
        return found


def _bucket(size: int) -> int:
    return size.bit_length()
