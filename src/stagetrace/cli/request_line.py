"""One request as a line of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.output import Column
from stagetrace.cli.terminal import milliseconds, promise
from stagetrace.cli.times import utc
from stagetrace.store.answers import slowest_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

COLUMNS: Final = (
    Column("time (UTC)"),
    Column("service"),
    Column("request"),
    Column("model"),
    Column("status", is_number=True),
    Column("took", is_number=True),
    Column("promised", is_number=True),
    Column("verdict"),
    Column("stage"),
    Column("trace"),
)


def cells(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row of `requests`, for `COLUMNS`."""
    name, route = request["name"], request["route"]
    status = "ERROR" if request["status"] == "ERROR" else "-"
    return (
        utc(request["start_unix_nano"]),
        request["service"],
        name if route is None or route in name else f"{name} {route}",
        request["model"] or "-",
        status if request["http_status"] is None else str(request["http_status"]),
        milliseconds(request["duration_ms"]),
        "-" if request["threshold_ms"] is None else promise(request["threshold_ms"]),
        request["verdict"] or "-",
        slowest_stage(request) or "-",
        request["trace_id"],
    )
