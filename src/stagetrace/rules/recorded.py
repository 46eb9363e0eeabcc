"""The names of what the recording rules record: level, metric and operations, as Prometheus' conventions have it."""

from __future__ import annotations

from typing import Final

from stagetrace.rules.promql import duration

LABELS: Final = ("job", "sla_objective")
SEGMENT: Final = "sla_segment"
BUDGET_LEFT: Final = "job_objective:sla_error_budget_remaining:ratio"


def by(*, segmented: bool = False) -> str:
    """Return the labels of a level, as they stand in `by (...)`."""
    return ", ".join((*LABELS, SEGMENT) if segmented else LABELS)


def requests(window_s: float, *, segmented: bool = False) -> str:
    """Return the name of the number of judged requests in a window."""
    return f"{_level(segmented)}:sla_requests:increase{duration(window_s)}"


def ratio(window_s: float, *, segmented: bool = False) -> str:
    """Return the name of the share of breaches among the judged requests of a window; it is absent without any."""
    return f"{_level(segmented)}:sla_breaches:ratio_increase{duration(window_s)}"


def budget_left(*, segmented: bool = False) -> str:
    """Return the name of the share of the error budget that is left of the objective's window; negative: overspent."""
    return BUDGET_LEFT.replace("job_objective", _level(segmented))


def _level(segmented: bool) -> str:
    return "job_objective_segment" if segmented else "job_objective"
