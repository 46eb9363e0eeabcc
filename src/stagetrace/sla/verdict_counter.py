"""How many requests were judged, by objective and verdict: exact under any sampling."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING

from stagetrace import log
from stagetrace.real_threads import allocate_lock

if TYPE_CHECKING:
    from stagetrace.sla.policy import Policy

MAX_ROUTES_SHOWN = 5
MAX_COUNTED = 10_000  # combinations of objective, verdict and route; more are counted without their route


class VerdictCounter:
    """Exact count of judged requests by objective and verdict, taken before any sampling."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards all below
        self._counts: dict[tuple[str, str, str], int] = {}
        self.since_ns = time_ns()
        self._causes: dict[tuple[str, str], int] = {}
        self.unmatched = 0
        self._routes: dict[str, None] = {}  # of unmatched requests, the first few

    def add(
        self,
        objective: str,
        verdict: str,
        route: str = "",
        stage: str | None = None,  # noqa: ARG002 -- for metrics, so the next two
        segment: str | None = None,  # noqa: ARG002
        duration_ns: int = 0,  # noqa: ARG002
    ) -> None:
        """Count one judged request; `stage` is the guilty one of a breach."""
        key = (objective, verdict, route)
        with self._lock:
            if key not in self._counts and len(self._counts) >= MAX_COUNTED:
                key = (objective, verdict, "")
            self._counts[key] = self._counts.get(key, 0) + 1

    def add_cause(self, objective: str, cause: str) -> None:
        """Count one breach, which `add` has counted too, by its cause."""
        with self._lock:
            self._causes[objective, cause] = self._causes.get((objective, cause), 0) + 1

    def add_unmatched(self, label: str) -> None:
        """Count one request that no objective judges; `label` is its method and route."""
        with self._lock:
            self.unmatched += 1
            if len(self._routes) < MAX_ROUTES_SHOWN:
                self._routes[label] = None

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of requests by (objective, verdict)."""
        counts: dict[tuple[str, str], int] = {}
        for (objective, verdict, _), count in self.by_route().items():
            counts[objective, verdict] = counts.get((objective, verdict), 0) + count
        return counts

    def by_route(self) -> dict[tuple[str, str, str], int]:
        """Return the number of requests by (objective, verdict, route)."""
        with self._lock:
            return dict(self._counts)

    def causes(self) -> dict[tuple[str, str], int]:
        """Return the number of breaches by (objective, cause)."""
        with self._lock:
            return dict(self._causes)

    def say_unmatched(self, policy: Policy) -> None:
        """Warn, once, if requests came and the policy judged none of them."""
        with self._lock:
            if self._counts or not self.unmatched:
                return
            rules = "; ".join(objective.name for objective in policy.objectives)
            message = (
                f"STAGETRACE_SLA {rules!r} matched none of {self.unmatched} requests: nothing is judged.\n"
                f"They were {', '.join(self._routes)}. Use such a method and route, or `*` for all."
            )
            if policy.problems:
                message += f"\nRules that cannot be read match what they are about: {'; '.join(policy.problems)}."
        log.once("policy matches nothing", message)
