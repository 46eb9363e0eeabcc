"""One request, and the stages of one route and model, as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from stagetrace.output import units
from stagetrace.output.answer import keys_of
from stagetrace.output.table import COMMON, TIME, TRACE, Column
from stagetrace.output.units import UTC, Zone, milliseconds, shown, threshold
from stagetrace.store.answers import slowest_stage
from stagetrace.store.entries import request_text

if TYPE_CHECKING:
    from stagetrace.analysis.routes_and_stages import Group

# --- One request as a line of a table.

_COLUMNS: Final = (
    Column("service", kind=COMMON, leaves=4),
    Column("request"),
    Column("model", kind=COMMON, leaves=1),
    Column("status", is_number=True, kind=COMMON, leaves=2),
    Column("took", is_number=True),
    Column("allowed", is_number=True, kind=COMMON, leaves=3),
    Column("verdict", kind=COMMON),
    Column("stage"),
    Column("trace", kind=TRACE),
)


def columns(zone: Zone) -> tuple[Column, ...]:
    """Return the columns of such a table."""
    return (Column(f"time ({zone.name})", kind=TIME), *_COLUMNS)


def cells(request: Mapping[str, Any], zone: Zone = UTC) -> tuple[str, ...]:
    """Return the cells of a row of `requests`, for `columns`."""
    status = "ERROR" if request["status"] == "ERROR" else "-"
    return (
        shown(request["start_unix_nano"], zone),
        request["service"],
        request_text(request["name"], request["url_path"] if request["route"] is None else request["route"]),
        request["model"] or "-",
        status if request["http_status"] is None else str(request["http_status"]),
        milliseconds(request["duration_ms"]),
        "-" if request["threshold_ms"] is None else threshold(request["threshold_ms"]),
        request["verdict"] or "-",
        slowest_stage(request) or "-",
        request["trace_id"],
    )


def as_json(group: Group) -> dict[str, Any]:
    """Return one group as `--json` prints it."""
    head = {**keys_of(group, "whole", "stages", "sample"), **units.keys(group.sample)}
    return {**head, **keys_of(group.whole, "stage", "count", "share"), "stages": [keys_of(one) for one in group.stages]}


def heading(group: Group) -> str:
    """Return the line above the stages of a group."""
    return f"{group.service} {group.route}{'' if group.model is None else f', model {group.model}'}"
