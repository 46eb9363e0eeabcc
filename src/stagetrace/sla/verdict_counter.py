"""How many requests were judged, by objective and verdict: exact under any sampling."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, NamedTuple

from stagetrace import log
from stagetrace.real_threads import allocate_lock
from stagetrace.recording.record import NO_STAGES

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from stagetrace.recording.stages import Stages
    from stagetrace.sla.policy import Policy

MAX_ROUTES_SHOWN = 5
MAX_COUNTED = 10_000  # combinations of what requests are counted by; more are counted as OVERFLOW


class Counted(NamedTuple):
    """What a judged request is counted by: the attributes of the metric `sla.requests`, empty where there is none."""

    objective: str
    verdict: str
    route: str = ""  # of an RPC its method
    stage: str = ""  # of a breach
    segment: str = ""
    overflow: bool = False  # whether it stands for all combinations beyond MAX_COUNTED


class VerdictCounter:
    """Exact count of judged requests by objective and verdict, taken before any sampling."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards all below
        self._counts: dict[Counted, int] = {}
        self._segment_overflow: dict[str, int] = {}
        self._unusable_deadlines: dict[str, int] = {}
        self.since_ns = time_ns()
        self._causes: dict[tuple[str, str], int] = {}
        self.unmatched = 0
        self._routes: dict[str, None] = {}  # of unmatched requests, the first few

    def add(
        self,
        objective: str,
        verdict: str,
        route: str = "",
        stage: str | None = None,
        segment: str | None = None,
        duration_ns: int | None = None,  # noqa: ARG002 -- for histograms, so the next two
        stages: Stages = NO_STAGES,  # noqa: ARG002
        trace: SpanContext | None = None,  # noqa: ARG002
    ) -> None:
        """Count one judged request, and how long it and its stages took.

        `stage` is the culprit of a breach. `trace` is the context of an entry span that is kept; None for one that the
        head sampler drops, or that cannot be sent.
        """
        key = Counted(objective, verdict, route, stage or "", segment or "")
        with self._lock:
            if key not in self._counts and len(self._counts) >= MAX_COUNTED:
                key = Counted(objective, verdict, overflow=True)
            self._counts[key] = self._counts.get(key, 0) + 1

    def add_segment_overflow(self, objective: str) -> None:
        """Count one request that belongs to the segment `other`, since its objective has as many as it may."""
        with self._lock:
            self._segment_overflow[objective] = self._segment_overflow.get(objective, 0) + 1

    def segment_overflow(self) -> dict[str, int]:
        """Return the number of requests in the segment `other` by objective."""
        with self._lock:
            return dict(self._segment_overflow)

    def add_unusable_deadline(self, source: str) -> None:
        """Count one request whose deadline, in a header of this name, is no usable time."""
        with self._lock:
            self._unusable_deadlines[source] = self._unusable_deadlines.get(source, 0) + 1

    def unusable_deadlines(self) -> dict[str, int]:
        """Return the number of such requests by the name of the header."""
        with self._lock:
            return dict(self._unusable_deadlines)

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
        for key, count in self.points().items():
            counts[key[:2]] = counts.get(key[:2], 0) + count
        return counts

    def points(self) -> dict[Counted, int]:
        """Return the number of requests by all that they are counted by."""
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
