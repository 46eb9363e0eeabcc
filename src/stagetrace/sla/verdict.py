"""Judge one request: a pure function of the policy, the request's duration and its stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagetrace import semconv
from stagetrace.semconv import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.sla.policy import Objective, Policy

GOOD = "good"
BREACH = "breach"
MAJOR_FROM = 1.25
CRITICAL_FROM = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one request kept its promise. Durations in nanoseconds; `stage` is the guilty one of a breach."""

    objective: Objective
    duration_ns: int
    breached: bool
    stage: str | None
    stage_ns: int

    @property
    def word(self) -> str:
        """Return `good` or `breach`."""
        return BREACH if self.breached else GOOD

    @property
    def severity(self) -> str:
        """Return the class of the overrun: `minor`, `major` or `critical`."""
        ratio = self.duration_ns / self.objective.within_ns
        return "minor" if ratio < MAJOR_FROM else "major" if ratio < CRITICAL_FROM else "critical"

    def attributes(self) -> dict[str, Any]:
        """Return what the entry span carries of this verdict."""
        within_ns = self.objective.within_ns
        attributes: dict[str, Any] = {
            semconv.SLA_BREACHED: self.breached,
            semconv.SLA_VERDICT: self.word,
            semconv.SLA_OBJECTIVE: self.objective.name,
            semconv.SLA_THRESHOLD_MS: within_ns / 1e6,
        }
        if self.breached:
            attributes[semconv.SLA_OVERRUN_MS] = (self.duration_ns - within_ns) / 1e6
            attributes[semconv.SLA_SEVERITY] = self.severity
            attributes[semconv.SLA_BREACH_CAUSE] = "unknown"
            if self.stage is not None:
                attributes[semconv.SLA_BREACH_STAGE] = self.stage
                attributes[semconv.SLA_BREACH_EVIDENCE] = (
                    f"{self.stage} took {self.stage_ns / 1e6:.1f} of {self.duration_ns / 1e6:.1f} ms, "
                    f"{within_ns / 1e6:g} ms were promised"
                )
        return attributes


def judge(
    policy: Policy, method: str | None, route: str, duration_ns: int, stages: Mapping[str, int]
) -> Verdict | None:
    """Return the verdict of the first objective that matches, or None.

    `stages` maps a stage to its summed duration in nanoseconds; the largest is the guilty one, the earlier of equals.
    A request that takes exactly as long as promised is good.
    """
    objective = policy.objective(method, route)
    if objective is None:
        return None
    breached = duration_ns > objective.within_ns
    stage = max(stages, key=lambda name: (stages[name], -_order(name))) if breached and stages else None
    return Verdict(objective, duration_ns, breached, stage, stages[stage] if stage is not None else 0)


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)
