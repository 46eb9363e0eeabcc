"""Attributes of two groups of requests side by side: which share of each group has a value. Described, not tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from stagetrace.analysis.cases import Cases
from stagetrace.analysis.values import coded

LEAST: Final = 2  # requests that have a value


class Share(NamedTuple):
    """A value, or None where the attribute is absent: the share of either group that has it."""

    value: str | None
    inside: float
    outside: float


@dataclass(frozen=True)
class Profile:
    """One attribute: its values by their difference, greatest first, and how far both groups differ in all."""

    key: str
    shares: tuple[Share, ...]
    distance: float  # half the sum of differences, 0 to 1


def profiles(cases: Cases) -> list[Profile]:
    """Return the attributes of which both groups have different values, the most different ones first."""
    weights = [np.where(side, cases.weights, 0.0) for side in (cases.breached, ~cases.breached)]
    if not all(one.sum() for one in weights):
        return []
    found = []
    for key, column in cases.attributes.items():
        made = coded(column, LEAST)
        if made is None or len(made.values) + made.has_others < 2:  # noqa: PLR2004 -- one value distinguishes nothing
            continue
        size = len(made.values) + 1
        inside, outside = (np.bincount(made.codes, one, size) / one.sum() for one in weights)
        shares = [Share(value, float(inside[place]), float(outside[place])) for place, value in enumerate(made.values)]
        shares.sort(key=lambda one: (-abs(one.inside - one.outside), one.value or ""))
        found.append(Profile(key, tuple(shares), float(np.abs(inside - outside).sum() / 2)))
    return sorted(found, key=lambda one: (-one.distance, one.key))
