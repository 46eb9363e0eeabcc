"""`stagetrace stages`: how long each stage takes, of each route and model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments import next_command, selection_options
from stagetrace.cli.ask import PRINTED
from stagetrace.output import units
from stagetrace.output.answer import Answer, no_requests
from stagetrace.output.table import Column, Table, numbers
from stagetrace.output.table_rows import as_json, heading
from stagetrace.output.units import milliseconds, rounded_percent

if TYPE_CHECKING:
    from stagetrace.analysis.estimates import Sample
    from stagetrace.analysis.routes_and_stages import Group, Stage
    from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Show how long each stage takes, of each service, route and model: exact quantiles, and its share of the whole\n"
    "time of these requests. A stage that a request does not have does not count for it. Where the service samples, a\n"
    "request counts for as many as it stands for, marked by ~."
)
EXAMPLE: Final = "stagetrace stages --route /predict --since 15m"
OPTIONS: Final = (*selection_options(), *PRINTED)
_COLUMNS: Final = (Column("stage"), *numbers("count", "p50", "p95", "p99", "max", "share"))


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the stages of a selection."""
    from stagetrace.analysis import routes_and_stages

    with reader.relations(wanted) as relations:
        groups = sorted(routes_and_stages.ask_stages(relations), key=lambda group: -group.whole.p99_ms)
    notes = [units.note(f"{group.service} {group.route}", group.sample) for group in groups]
    table = Table(_COLUMNS, [row for group in groups for row in _rows(group)])
    return Answer(
        "Stages",
        _sentence(groups) if groups else no_requests(wanted, args.tz),
        {"groups": [as_json(group) for group in groups]},
        [table, *filter(None, notes)] if groups else (),
        reason=relations.reason,
        steps=[next_command(args, "bottleneck")] if groups else (),
    )


def _sentence(groups: Sequence[Group]) -> str:
    """Return which requests are the slowest, those of the first group, and in which stage."""
    slowest = groups[0]
    longest = max(slowest.stages, key=lambda stage: stage.share or 0.0, default=None)
    where = "" if longest is None else f"; {longest.stage} takes {rounded_percent(longest.share)} of its time"
    took = milliseconds(slowest.whole.p99_ms)
    return f"At p99 {slowest.route} of service {slowest.service} takes longest, {took}{where}."


def _rows(group: Group) -> Iterator[tuple[str, ...] | str]:
    yield heading(group)
    yield ("  (request)", *_numbers(group.whole, group.sample))
    for stage in group.stages:
        yield (f"  {stage.stage}", *_numbers(stage, group.sample))


def _numbers(stage: Stage, sample: Sample) -> tuple[str, ...]:
    quantiles = map(milliseconds, (stage.p50_ms, stage.p95_ms, stage.p99_ms, stage.max_ms))
    return units.about(stage.count, sample), *quantiles, rounded_percent(stage.share, 1)
