"""The rows of the board's table of objectives: how routes did in the window, joined with what `stagetrace slo` has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from stagetrace.analysis.attainment import Attained, Target, exact_interval, is_missed
from stagetrace.analysis.slo import SHOWN
from stagetrace.output import objectives

if TYPE_CHECKING:
    from stagetrace.analysis.routes import Route

_ROWS: Final = 50
_HELD: Final = 0.99  # share of its window that the store has
Slo: TypeAlias = "Mapping[str, Any]"  # an objective as `stagetrace slo --json` has it


class Row(NamedTuple):
    """One objective of a service and route; `route` is None where the window has no request of it."""

    slo: Slo
    route: Route | None

    @property
    def id(self) -> str:
        """Return what tells its element from those of others."""
        key = "\0".join(str(self.slo[name]) for name in ("service", "route", "objective", "target"))
        return f"objective-{crc32(key.encode()):08x}"

    @property
    def attained(self) -> Attained | None:
        """Return which share of the window's requests met it, as `slo` has it of another window."""
        known = None if self.route is None else self.route.attainment
        if known is None or self.route is None:
            return None
        if known.low < known.high:
            return Attained(*known, is_estimate=True)
        judged = self.route.judged
        return Attained(known.value, *exact_interval(judged - self.route.breaches, judged), is_estimate=False)

    @property
    def missed(self) -> bool | None:
        """Return whether fewer requests of the window met it than wanted; None where that is not known."""
        return is_missed(self.attained, Target(self.slo["target"], self.slo["window_s"]))

    @property
    def burns(self) -> list[tuple[str, float | None]]:
        """Return the burn rates by window."""
        return [(name, self.slo["burn"].get(name)) for name in SHOWN]

    @property
    def alerts(self) -> list[Mapping[str, Any]]:
        """Return the alerts that fire."""
        return [one for one in self.slo["alerts"] if one["fires"]]

    @property
    def window(self) -> str:
        """Return how long the objective's window is."""
        return objectives.length(self.slo["window_s"])

    @property
    def held(self) -> str | None:
        """Return how much of the objective's window the store has; None where that is all of it."""
        held = self.slo["held_s"]
        return None if held >= _HELD * self.slo["window_s"] else objectives.length(held)


def values(found: Sequence[Route], slo: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the table: rows with most breaches in the window first, and what has no objective."""
    of_window = {(one.service, one.route, one.objective): one for one in found if one.judged}
    rows = [Row(one, of_window.get((one["service"], one["route"], one["objective"]))) for one in slo["objectives"]]
    rows.sort(key=_worst_first)
    return {
        "rows": rows[:_ROWS],
        "all_rows": len(rows),
        "unjudged": sum(one.requests - one.judged for one in found),
        "burns": SHOWN,
        "windows": {one.window for one in rows},
        "held": {one.held for one in rows},
        "share": objectives.percent,
        "wanted": objectives.wanted,
        "interval": objectives.interval,
        "estimated": any(one.route is not None and one.route.sample.is_estimate for one in rows),
    }


def _worst_first(one: Row) -> tuple[bool, int, int]:
    if one.route is None:
        return (True, 0, 0)
    return (not one.missed, -one.route.breaches, -one.route.requests)
