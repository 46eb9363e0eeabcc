"""The stages of one service, route and model, as `stages` and `watch` show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.output import sampling
from stagetrace.output.keys import keys_of

if TYPE_CHECKING:
    from stagetrace.analysis.stage_times import Group


def as_json(group: Group) -> dict[str, Any]:
    """Return one group as `--json` prints it."""
    head = {**keys_of(group, "whole", "stages", "sample"), **sampling.keys(group.sample)}
    return {**head, **keys_of(group.whole, "stage", "count", "share"), "stages": [keys_of(one) for one in group.stages]}


def heading(group: Group) -> str:
    """Return the line above the stages of a group."""
    return f"{group.service} {group.route}{'' if group.model is None else f', model {group.model}'}"
