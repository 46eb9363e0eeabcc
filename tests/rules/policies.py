"""Policies that the tests of the formats share."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from stagetrace.sla.alert_options import PAGE, TICKET, AlertOptions, BurnAlert
from stagetrace.sla.objective import SERVICE_KEY, Condition, Objective
from stagetrace.sla.policy import Policy

# Sloth's own windows for 30 days, two pairs for each severity.
SLOTH_BURNS: Final = (
    BurnAlert(14.4, 3_600, 300, PAGE),
    BurnAlert(6.0, 6 * 3_600, 1_800, PAGE),
    BurnAlert(3.0, 86_400, 2 * 3_600, TICKET),
    BurnAlert(1.0, 3 * 86_400, 6 * 3_600, TICKET),
)
PREDICT: Final = Objective(
    "predict", "POST", "/predict", 250_000_000, 0.99, 30 * 86_400, conditions=(Condition(SERVICE_KEY, "churn-api"),)
)
OTHERS: Final = Objective("others", None, "*", 10**9, 0.95, 30 * 86_400)


def policy(*objectives: Objective, **alerts: object) -> Policy:
    """Return a policy with these objectives; by default `predict` and `others`."""
    return Policy(objectives or (PREDICT, OTHERS), alerts=replace(AlertOptions(), **alerts))  # type: ignore[arg-type]
