"""Which alerts an objective has, and which of them are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.policies import PREDICT, policy
from stagetrace.policy.alert_options import AlertOptions, BurnAlert, can_fire, nearest_factor
from stagetrace.policy.objective import Objective
from stagetrace.rules import burn
from stagetrace.rules.base import RulesError
from stagetrace.rules.burn import Counts


def test_the_alerts_of_an_objective_are_those_of_the_workbook() -> None:
    found = burn.alerts(PREDICT, AlertOptions())
    assert [(one.factor, one.long_s, one.short_s, one.severity, one.threshold) for one in found] == [
        (14.4, 3_600, 300, "page", 0.144),
        (6.0, 21_600, 1_800, "page", 0.06),
        (1.0, 259_200, 21_600, "ticket", 0.01),
    ]


def test_an_alert_that_can_never_fire_is_refused_with_one_that_can() -> None:
    """14.4 needs a target above 93.06 %, 6 one above 83.33 %."""
    with pytest.raises(RulesError) as refused:
        burn.alerts(replace(PREDICT, target=0.9), AlertOptions())
    assert str(refused.value) == (
        "the alert at 14.4 times the budget of 'predict' can never fire: with a target of 90 %, a burn rate is at most"
        " 10, when all requests are breaches\n"
        "write a factor of at most 9.9 into alerts.burn of a policy file, or of this objective in it, or a target above"
        " 93.06 %"
    )


@given(st.floats(0.0001, 0.99999))
def test_the_factor_that_is_named_can_fire_and_hardly_a_larger_one(target: float) -> None:
    factor = nearest_factor(target)
    assert factor > 0
    assert can_fire(factor, target)
    assert factor >= 0.9 * (1 / (1 - target) - 0.1)


def test_an_objective_of_all_requests_has_no_budget_and_an_alert_on_any_breach() -> None:
    (alert,) = burn.alerts(replace(PREDICT, target=1.0), AlertOptions())
    assert (alert.factor, alert.windows, alert.severity) == (None, (300,), "page")
    assert burn.is_burning(alert, {300: Counts(10_000, 1)})
    assert not burn.is_burning(alert, {300: Counts(10_000, 0)}, fires=True)
    assert burn.alerts(replace(PREDICT, target=1.0), AlertOptions(())) == ()


def test_what_excludes_has_no_alert_and_of_one_name_the_first_objective_counts() -> None:
    excluded = Objective("GET /health excluded", "GET", "/health", 1, excludes=True)
    assert burn.alerts(excluded, AlertOptions()) == ()
    again = replace(PREDICT, target=0.5)
    assert burn.judged(policy(excluded, PREDICT, again)) == (PREDICT,)


@pytest.mark.parametrize(
    ("short", "long", "fires", "wanted"),
    [
        ((0, 5), (50, 50), False, True),
        ((0, 5), (90, 10), False, False),  # just the threshold
        ((9, 1), (50, 50), True, False),  # the short window is over
        ((0, 5), (4, 5), False, False),  # fewer than ten requests
        ((0, 0), (50, 50), False, False),
        ((0, 0), (50, 50), True, True),  # nothing shows that it is over
        ((0, 0), (0, 0), True, False),
    ],
)
def test_an_alert_fires_when_both_windows_burn(
    short: tuple[int, int], long: tuple[int, int], *, fires: bool, wanted: bool
) -> None:
    (alert,) = burn.alerts(PREDICT, AlertOptions((BurnAlert(10, 1_800, 300),)))
    counts = {300.0: Counts(*short), 1_800.0: Counts(*long)}
    assert burn.is_burning(alert, counts, fires=fires) is wanted
