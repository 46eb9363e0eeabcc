"""The counter `sla.requests` of services, out of the table that the Collector's exporter writes of sums."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from stagetrace.store.clickhouse.relation import COUNTS, Table
from stagetrace.store.count_series import Series, counted
from stagetrace.store.database import sql

if TYPE_CHECKING:
    from stagetrace.analysis.estimates import Counted
    from stagetrace.store.base import Selection
    from stagetrace.store.clickhouse.client import Client

# A process tells its counts each minute: those before and after a window lie within a day of it.
_BESIDE_NS: Final = 86_400 * 10**9
_EVER_NS: Final = 2**63 - 1


def read(client: Client, table: Table, selection: Selection) -> list[Counted]:
    """Return the counts of each service in the selection's time, as far as its points reach."""
    rows = client.rows(
        sql("sent_counts_clickhouse").replace("{table}", table.quoted(COUNTS)),
        {
            "since": max(0, selection.since_ns - _BESIDE_NS),
            "until": min(_EVER_NS, selection.until_ns + _BESIDE_NS),
            "service": selection.service,
        },
    )
    told = _times(rows)
    every = [_series(key, list(its), told) for key, its in groupby(rows, key=lambda row: tuple(row.values())[:7])]
    inside = [
        one for one in every if one.values[-1][2] >= selection.since_ns and one.values[0][1] <= selection.until_ns
    ]
    return counted(inside, selection.since_ns, selection.until_ns)


def _times(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[int]]:
    """Return when each process told its counts, sorted."""
    found: dict[tuple[str, str, int], set[int]] = {}
    for row in rows:
        found.setdefault((row["service"], row["instance"], row["start"]), set()).update((row["first"], row["last"]))
    return {process: sorted(times) for process, times in found.items()}


def _series(key: Any, rows: list[dict[str, Any]], told: dict[tuple[str, str, int], list[int]]) -> Series:
    values = [(row["value"], row["first"], row["last"]) for row in rows]
    first, start = rows[0], key[2]
    if start == 0:  # of increments: counted from the first one's begin on
        values.insert(0, (0, first["began"], first["began"]))
    else:  # it had not begun when its process told its other counts before
        before = [time for time in told[key[:3]] if start < time < first["first"]]
        if before:
            values.insert(0, (0, start, before[-1]))
    return Series(key, values)
