"""The alerts of an objective: how fast its error budget burns, over which windows. Prometheus and `up` evaluate them.

A window's burn rate is its share of breaches among the judged requests, divided by the share that the target allows.
Excluded requests count nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.policy.alert_options import AlertOptions, can_fire, nearest_factor
from stagetrace.rules.base import RulesError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy

# Seconds; what boards and people look at, whether or not an alert needs it.
STANDARD_WINDOWS: Final = (300, 1_800, 3_600, 7_200, 21_600, 86_400, 259_200)
ANY_BREACH_S: Final = 300
_DIGITS: Final = 12


class Counts(NamedTuple):
    """The judged requests of one window. They may be fractions, where a rate was extrapolated."""

    good: float = 0
    breaches: float = 0

    @property
    def judged(self) -> float:
        """Return how many were judged."""
        return self.good + self.breaches

    @property
    def ratio(self) -> float | None:
        """Return the share of breaches; None where no request was judged."""
        return self.breaches / self.judged if self.judged > 0 else None


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert on one objective; windows in seconds, `threshold` a share of breaches which both have to exceed.

    `factor` is the burn rate of that threshold; None where any breach is one too many: the target is 100 %.
    """

    objective: Objective
    factor: float | None
    long_s: float
    short_s: float
    severity: str
    threshold: float
    min_requests: int

    @property
    def windows(self) -> tuple[float, ...]:
        """Return the windows in which requests have to be counted."""
        return (self.short_s,) if self.short_s == self.long_s else (self.short_s, self.long_s)


def alerts(objective: Objective, options: AlertOptions, scale: float = 1.0) -> tuple[Alert, ...]:
    """Return the alerts of an objective: none for one that excludes; on any breach where no request may be one.

    Raises:
        RulesError: where one could never fire, with the largest factor that can.
    """
    if objective.excludes or not options.burns:
        return ()
    if objective.target >= 1:
        length = ANY_BREACH_S * scale
        return (Alert(objective, None, length, length, options.burns[0].severity, 0.0, 1),)
    for burn in options.burns:
        if not can_fire(burn.factor, objective.target):
            raise RulesError(_cannot_fire(objective, burn.factor))
    return tuple(
        Alert(
            objective,
            burn.factor,
            burn.long_s * scale,
            burn.short_s * scale,
            burn.severity,
            _rounded(burn.factor * budget(objective)),
            options.min_requests,
        )
        for burn in options.burns
    )


def budget(objective: Objective) -> float:
    """Return the share of its requests that may be breaches."""
    return _rounded(1 - objective.target)


def judged(policy: Policy) -> tuple[Objective, ...]:
    """Return the objectives that judge requests; of those with one name the first, under which all are counted."""
    found: dict[str, Objective] = {}
    for one in policy.objectives:
        if not one.excludes:
            found.setdefault(one.name, one)
    return tuple(found.values())


def is_burning(alert: Alert, counts: Mapping[float, Counts], *, fires: bool = False) -> bool:
    """Return whether an alert fires, by the requests of each of its windows, keyed by their length in seconds.

    `fires`: whether it does so far. It stays as it is while the short window holds no judged request, since nothing
    shows that the fault is over; it ends when the long window holds none either.
    """
    short, long = counts.get(alert.short_s, Counts()), counts.get(alert.long_s, Counts())
    if short.ratio is None or long.ratio is None:
        return fires and long.ratio is not None
    return long.judged >= alert.min_requests and min(short.ratio, long.ratio) > alert.threshold


def _cannot_fire(objective: Objective, factor: float) -> str:
    share = f"{100 * objective.target:.12g} %"
    return (
        f"the alert at {factor:g} times the budget of {objective.name!r} can never fire: with a target of {share}, "
        f"a burn rate is at most {1 / budget(objective):.4g}, when all requests are breaches\n"
        f"write a factor of at most {nearest_factor(objective.target):g} into alerts.burn of a policy file, or of "
        f"this objective in it, or a target above {100 * (1 - 1 / factor):.4g} %"
    )


def _rounded(value: float) -> float:
    """Return a number without the last digits, in which floating-point arithmetic differs from that of people."""
    return float(f"{value:.{_DIGITS}g}")
