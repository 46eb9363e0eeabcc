"""When to alert on an objective: burn rates over two windows each, and guards where there is little or no traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE: Final = "page"
TICKET: Final = "ticket"


class BurnAlert(NamedTuple):
    """Alert where the error budget burns faster than `factor` over both windows; a window in seconds.

    Burn rate 1 spends the budget just within the objective's window.
    """

    factor: float
    long_s: int
    short_s: int
    severity: str = PAGE


# Google's SRE workbook, chapter 5, table 5-8.
SRE_WORKBOOK: Final = (
    BurnAlert(14.4, 3_600, 300),
    BurnAlert(6.0, 6 * 3_600, 1_800),
    BurnAlert(1.0, 3 * 86_400, 6 * 3_600, TICKET),
)


class AlertOptions(NamedTuple):
    """What a policy says of its alerts; without saying it, what is written here.

    `min_requests`: with fewer judged requests in the long window there is no alert. `no_data_s`: after how long without
    any judged request there is one; 0: never. `labels` go to each alert. `runbook`: a URL. `webhook`, `alertmanager`:
    where `stagetrace up` posts alerts. `traces`: URL of stagetrace's page or of Jaeger's UI, for links to breaches.
    """

    burns: tuple[BurnAlert, ...] = SRE_WORKBOOK
    min_requests: int = 10
    no_data_s: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    runbook: str = ""
    webhook: str = ""
    alertmanager: str = ""
    traces: str = ""


def changed(options: AlertOptions, own: Mapping[str, Any]) -> AlertOptions:
    """Return alerts with what is said otherwise; labels are added to those that are there."""
    labels = {**dict(options.labels), **dict(own.get("labels", ()))}
    return options._replace(**{**own, "labels": tuple(labels.items())})


def nearest_factor(target: float) -> float:
    """Return the largest factor, in two digits, with which an alert on an objective with this target can fire."""
    most = rounded(1 / rounded(1 - target))
    step = 0.1 if most > 1.1 else 0.01  # noqa: PLR2004 -- next to 1 a step of a tenth has nothing to offer
    steps = rounded(most / step)
    return rounded((int(steps) - (steps % 1 == 0)) * step)


def rounded(value: float) -> float:
    """Return a number without the last digits, in which floating-point arithmetic differs from that of people."""
    return float(f"{value:.12g}")


def can_fire(factor: float, target: float) -> bool:
    """Return whether a burn rate above `factor` exists: if all requests are breaches it is 1 / (1 - target)."""
    return factor * (1 - target) < 1
