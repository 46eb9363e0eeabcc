"""The names of what the recording rules record: level, metric and operations, as Prometheus' conventions have it."""

from __future__ import annotations

from typing import Final

from stagetrace.rules.promql import duration

LABELS: Final = ("job", "sla_objective")
SEGMENT: Final = "sla_segment"


def by(*, segmented: bool = False) -> str:
    """Return the labels of a level, as they stand in `by (...)`."""
    return ", ".join((*LABELS, SEGMENT) if segmented else LABELS)


def counts(window_s: float, *, segmented: bool = False) -> str:
    """Return the name of the number of requests in a window, by their verdict: `good` or `breach`."""
    return f"{_level(segmented)}_verdict:sla_requests:increase{duration(window_s)}"


def ratio(window_s: float, *, segmented: bool = False) -> str:
    """Return the name of the share of breaches among the judged requests of a window; it is absent without any."""
    return f"{_level(segmented)}:sla_breaches:ratio_increase{duration(window_s)}"


def counts_since(unit: str, *, segmented: bool = False) -> str:
    """Return the name of the number of requests by verdict since the begin of the calendar's day, week, month ..."""
    return f"{_level(segmented)}_verdict:sla_requests:increase_{unit}"


def ratio_since(unit: str, *, segmented: bool = False) -> str:
    """Return the name of the share of breaches since then."""
    return f"{_level(segmented)}:sla_breaches:ratio_increase_{unit}"


def step(*, segmented: bool = False) -> str:
    """Return the name of the number of requests in five minutes by verdict, with the period of the calendar."""
    return f"{_level(segmented)}_verdict_period:sla_requests:increase5m"


def budget_left(*, segmented: bool = False) -> str:
    """Return the name of the share of the error budget that is left of the objective's window; negative: overspent."""
    return f"{_level(segmented)}:sla_error_budget_remaining:ratio"


def _level(segmented: bool) -> str:
    return "job_objective_segment" if segmented else "job_objective"
