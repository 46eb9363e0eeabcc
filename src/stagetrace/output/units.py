"""Numbers with their units, as every output shows them."""

from __future__ import annotations


def milliseconds(value: float) -> str:
    """Return a duration with its unit, always ms so that a column compares at a glance."""
    return f"{value:.3f} ms" if abs(value) < 1 else f"{value:.2f} ms"


def threshold(value: float) -> str:
    """Return a threshold with its unit in the form of a policy: `50 ms`, not `50.00 ms`."""
    return f"{f'{value:.3f}'.rstrip('0').rstrip('.')} ms"


def percent(share: float | None) -> str:
    """Return a share with two digits that count, `-` where it is not known."""
    if share is None:
        return "-"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"  # noqa: PLR2004 -- 10 %


def chance(value: float | None) -> str:
    """Return how likely something is by chance, as far as it matters."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.2g}"  # noqa: PLR2004 -- as far as it is shown


def q_value(value: float) -> str:
    """Return the share of false ones among findings as sure as this one."""
    return "q < 0.001" if value < 0.001 else f"q = {value:.3f}"  # noqa: PLR2004 -- as far as it is shown
