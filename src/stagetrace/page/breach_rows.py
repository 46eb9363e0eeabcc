"""Rows of the list of breaches, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.output import missed_bounds
from stagetrace.output.units import milliseconds, threshold
from stagetrace.page.templates import stage_class
from stagetrace.store.answers import entry, slowest_stage
from stagetrace.store.entries import request_text

if TYPE_CHECKING:
    from stagetrace.page.asked import Asked

_WIDE: Final = 100.0  # a bar of stages, in its own units


class Slice(NamedTuple):
    """One stage in the bar of a request."""

    stage: str
    colour: str  # the class of its colour
    at: float
    width: float


class Row(NamedTuple):
    """One request, as it is shown."""

    number: int
    time: str
    service: str
    request: str
    took: str
    allowed: str
    over: str
    verdict: str  # empty of a breach
    stage: str | None
    colour: str
    cause: str | None
    code: str | None
    severity: str | None
    evidence: str | None
    bar: Sequence[Slice]
    stages: str  # the bar in words
    url: str


def rows_of(found: Sequence[Mapping[str, Any]], at: int, asked: Asked) -> list[Row]:
    """Return rows of `requests`, of which the first has `at` before it."""
    return [_row(number, one, asked) for number, one in enumerate(found, at + 1)]


def _row(number: int, found: Mapping[str, Any], asked: Asked) -> Row:
    made = entry(found)
    stage = slowest_stage(found)
    return Row(
        number,
        asked.time(made.start_unix_nano),
        made.service,
        request_text(made.name, found["url_path"] if made.route is None else made.route),
        missed_bounds.column(made),
        "-" if made.threshold_ms is None else threshold(made.threshold_ms),
        "-" if made.overrun_ms is None else milliseconds(made.overrun_ms),
        "" if found["breached"] else found["verdict"] or "not judged",
        stage,
        stage_class(stage),
        made.cause,
        made.code,
        made.severity,
        made.evidence,
        _bar(made.stages),
        ", ".join(f"{name} {milliseconds(took)}" for name, took in made.stages.items()),
        asked.url(f"/trace/{made.trace_id}"),
    )


def _bar(stages: Mapping[str, float]) -> list[Slice]:
    """Return the stages side by side, each as wide as its share."""
    kept = {name: took for name, took in stages.items() if took > 0}
    whole, at, bar = sum(kept.values()), 0.0, []
    for name, took in kept.items():
        width = _WIDE * took / whole
        bar.append(Slice(name, stage_class(name), round(at, 2), round(width, 2)))
        at += width
    return bar
