"""How long one request and its stages took beside others of its kind: which share of them took less."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.source import sample_of

if TYPE_CHECKING:
    from stagetrace.analysis.source import Source
    from stagetrace.estimates import Sample

LEAST: Final = 20  # requests, below which a rank is nothing to show
REQUEST: Final = "request"  # in place of a stage
_OTHER: Final = "other"
_UNUSUAL: Final = 0.1
_EVER_NS: Final = 1 << 62  # one bucket of time


class Rank(NamedTuple):
    """One part of a request among those of its kind that have it. Shares and the median are by weight."""

    part: str  # a stage, or `REQUEST`
    took_ms: float
    below: float | None  # the share of them that took less; None where they are fewer than `LEAST`
    median_ms: float | None
    stored: int  # how many there are

    @property
    def percent(self) -> float | None:
        """Return the share in %, rounded down to a tenth, 99.9 at most; None where it is hidden."""
        return None if self.below is None else min(floor(self.below * 1000 + 1e-6) / 10, 99.9)

    @property
    def label(self) -> str | None:
        """Return the rank as a percentile, rounded down, with a tenth from p99 on; None where it is hidden."""
        if self.percent is None:
            return None
        return f"p{floor(self.percent)}" if self.percent < 99 else f"p{self.percent:g}"  # noqa: PLR2004

    @property
    def excess_ms(self) -> float:
        """Return how much more than the median it took; 0 where that is not known."""
        return 0.0 if self.median_ms is None else max(self.took_ms - self.median_ms, 0.0)


class Ranks(NamedTuple):
    """The ranks of one request and its stages."""

    ranks: tuple[Rank, ...]
    sample: Sample

    @property
    def unusual(self) -> list[Rank]:
        """Return the stages that took more than usual, by how much: those with a tenth of the greatest and more."""
        stages = sorted((one for one in self.ranks if one.part != REQUEST), key=lambda one: -one.excess_ms)
        least = _UNUSUAL * stages[0].excess_ms if stages else 0.0
        return [one for one in stages if one.excess_ms > 0 and one.excess_ms >= least]


def ask(source: Source, took_ms: float, stages: Mapping[str, float]) -> Ranks:
    """Return how a request ranks among all of a source, which includes it; `stages`: its own, in ms."""
    known = {stage: took for stage, took in stages.items() if stage in semconv.STAGES}
    values: dict[str, float] = {_column(stage): known.get(stage, 0.0) for stage in (*semconv.STAGES, _OTHER)}
    rows = source.reduce("ranks", (), duration_ms=took_ms, **values)
    medians = source.reduce("quantiles_over_time", origin=0, width=_EVER_NS, least=LEAST)
    if not rows:
        return Ranks((), sample_of(()))
    row, typical = rows[0], {one["part"]: one["p50_ms"] for one in medians}
    found = [_rank(REQUEST, took_ms, row["duration_below"], row["requests"], row["stored"], typical)]
    for stage, took in known.items():
        name = stage.replace(".", "_")
        of_all = (row[f"{name}_below"], row[f"{name}_requests"], row[f"{name}_stored"])
        found.append(_rank(stage, took, *of_all, typical))
    return Ranks(tuple(found), sample_of(rows))


def _column(stage: str) -> str:
    return f"{stage.replace('.', '_')}_ms"


def _rank(part: str, took_ms: float, below: float, requests: float, stored: int, medians: Mapping[str, float]) -> Rank:
    if stored < LEAST or requests <= 0:
        return Rank(part, took_ms, None, None, stored)
    return Rank(part, took_ms, below / requests, medians.get(part), stored)
