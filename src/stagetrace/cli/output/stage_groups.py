"""The stages of one service, route and model, as `stages` and `watch` show them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stagetrace.cli.output import sampling

if TYPE_CHECKING:
    from stagetrace.store.answers import Group


def as_json(group: Group) -> dict[str, Any]:
    """Return one group as `--json` prints it."""
    whole = {key: value for key, value in asdict(group.whole).items() if key not in ("stage", "count", "share")}
    head = {"service": group.service, "route": group.route, "model": group.model, "requests": group.requests}
    head |= sampling.keys(group.sample)
    return {**head, **whole, "stages": [asdict(stage) for stage in group.stages]}


def heading(group: Group) -> str:
    """Return the line above the stages of a group."""
    return f"{group.service} {group.route}{'' if group.model is None else f', model {group.model}'}"
