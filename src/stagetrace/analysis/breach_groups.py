"""Breaches that are alike, as one group each: of one service, route, stage, cause and line of code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stagetrace.analysis.source import Source

_ALL: Final = 2**62


@dataclass(frozen=True)
class Group:
    """The breaches of one group, a row of the reduction. What they lack is None; times are starts of requests."""

    service: str
    route: str  # of requests without one: their name
    stage: str | None
    cause: str | None
    code: str | None
    breaches: int
    first_unix_nano: int
    last_unix_nano: int
    median_overrun_ms: float | None
    worst_overrun_ms: float | None
    worst_trace_id: str


@dataclass(frozen=True)
class Groups:
    """The largest groups, by the number of their breaches, of `different` ones."""

    groups: tuple[Group, ...]
    different: int


def ask(source: Source, most: int | None = None) -> Groups:
    """Return the groups of the breaches, at most `most`."""
    rows = [tuple(row.values()) for row in source.reduce("breach_groups", most=_ALL if most is None else most)]
    return Groups(tuple(Group(*row[:-1]) for row in rows), rows[0][-1] if rows else 0)
