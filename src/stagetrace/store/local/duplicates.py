"""Spans that were delivered twice: found before they reach the table, so that no query has to look for them.

A copy of a span starts when the span does, so only files of the same times can hold the other one. Of two copies the
one with a verdict stays, else the one with more attributes, else the first.
"""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.otlp.decode.columns import joined
from stagetrace.store.stored import KEY

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from stagetrace.store.local.view import View

_RANK: Final = "(breached IS NOT NULL)::INTEGER, coalesce(octet_length(rest), 0)"
_GAP_NS: Final = 60_000_000_000  # spans further apart than this are looked up apart
_MOST_RANGES: Final = 16


class Distinct(NamedTuple):
    """New spans without copies, and the keys of stored spans for which one of them is a better copy."""

    spans: pa.Table
    replaced: pa.Table | None
    dropped: int


def distinct(connection: DuckDBPyConnection, view: View, spans: pa.Table) -> Distinct:
    """Return the spans of which there is no copy yet, among themselves and in the files of `view`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    before = spans.num_rows
    for name, kind in (("breached", pa.bool_()), ("rest", pa.binary())):
        if name not in spans.column_names:
            spans = spans.append_column(name, pa.nulls(before, kind))
    if pc.count_distinct(spans["span_id"]).as_py() < before:
        unique = _ask(
            connection,
            f"SELECT * FROM batch QUALIFY row_number() OVER (PARTITION BY {KEY} ORDER BY "
            f"(breached IS NOT NULL) DESC, coalesce(octet_length(rest), 0) DESC, seq) = 1",
            batch=spans,
        )
        spans = joined([unique])
    stored = _stored(connection, view, spans)
    replaced = None
    if stored is not None:
        replaced = _ask(
            connection,
            f"SELECT {', '.join(f'batch.{name}' for name in KEY.split(', '))} FROM batch JOIN stored USING ({KEY}) "
            f"WHERE (({_RANK.replace('breached', 'batch.breached').replace('rest', 'batch.rest')})) > (judged, size)",
            batch=spans,
            stored=stored,
        )
        others = _ask(
            connection, f"SELECT * FROM stored ANTI JOIN replaced USING ({KEY})", stored=stored, replaced=replaced
        )
        new = _ask(connection, f"SELECT * FROM batch ANTI JOIN others USING ({KEY})", batch=spans, others=others)
        spans = joined([new])
        replaced = replaced if replaced.num_rows else None
    return Distinct(spans, replaced, before - spans.num_rows)


class DistinctTail:
    """The spans behind the table without copies; of what has come since the last question, and no more, anew.

    Safe for several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the three below
        self._version = -1
        self._parts: tuple[pa.Table, ...] = ()  # of the tail, which are in `_distinct`
        self._distinct: Distinct | None = None

    def of(self, connection: DuckDBPyConnection, view: View) -> Distinct | None:
        """Return the result of `distinct` for the tail of `view`, or None if it has no tail."""
        if not view.tail:
            return None
        with self._lock:
            known = self._distinct
            grown = view.snapshot.version == self._version and _is_longer(view.tail, self._parts)
            if known is None or not grown:
                known = distinct(connection, view, joined(view.tail))
            elif len(view.tail) > len(self._parts):
                known = _with(connection, view, known, view.tail[len(self._parts) :])
            self._version, self._parts, self._distinct = view.snapshot.version, view.tail, known
            return known


def _is_longer(tail: Sequence[pa.Table], known: Sequence[pa.Table]) -> bool:
    """Return whether a tail begins with all parts of a known one."""
    return len(tail) >= len(known) and all(one is other for one, other in zip(tail, known, strict=False))


def _with(connection: DuckDBPyConnection, view: View, known: Distinct, parts: Sequence[pa.Table]) -> Distinct:
    """Return `known` with the spans of more parts of the same tail."""
    import pyarrow as pa

    more = distinct(connection, view, joined(parts))
    pair = {"more": more.spans.select(KEY.split(", ")[:2]), "known": known.spans.select(KEY.split(", ")[:2])}
    again = _ask(connection, "SELECT count(*) FROM more SEMI JOIN known USING (trace_id, span_id)", **pair)
    if again.column(0)[0].as_py():  # which copy stays is decided over all of them
        return distinct(connection, view, joined(view.tail))
    replaced = [one for one in (known.replaced, more.replaced) if one is not None]
    spans = pa.concat_tables([known.spans, more.spans], promote_options="default").unify_dictionaries()
    return Distinct(spans, pa.concat_tables(replaced) if replaced else None, known.dropped + more.dropped)


def _stored(connection: DuckDBPyConnection, view: View, spans: pa.Table) -> pa.Table | None:
    """Return keys and ranks of stored spans that have the ids of new ones, or None if there are none."""
    import pyarrow as pa

    found = []
    for first, last in _ranges(spans):
        paths = [str(view.table / file.path) for file in view.files(first, last + 1)]
        if paths:
            found.append(
                _ask(
                    connection,
                    f"SELECT {KEY}, (breached IS NOT NULL)::INTEGER AS judged, coalesce(octet_length(rest), 0) AS size "
                    "FROM (SELECT NULL::BOOLEAN AS breached, NULL::BLOB AS rest WHERE false UNION ALL BY NAME "
                    "SELECT * FROM read_parquet($paths, hive_partitioning = false, union_by_name = true)) AS files "
                    "SEMI JOIN batch USING (span_id, trace_id) WHERE files.start_unix_nano BETWEEN $first AND $last",
                    {"paths": paths, "first": first, "last": last},
                    batch=spans.select(["span_id", "trace_id"]),
                )
            )
    found = [one for one in found if one.num_rows]
    return pa.concat_tables(found) if found else None


def _ranges(spans: pa.Table) -> list[tuple[int, int]]:
    """Return the times at which spans start as a few ranges without large gaps."""
    import pyarrow as pa
    import pyarrow.compute as pc

    starts = pc.take(spans["start_unix_nano"], pc.sort_indices(spans["start_unix_nano"])).combine_chunks()
    if isinstance(starts, pa.ChunkedArray):
        starts = starts.chunk(0)
    if len(starts) == 0:
        return []
    gaps = pc.subtract(starts[1:], starts[:-1])  # none is below zero, so nothing overflows
    wide = pc.indices_nonzero(pc.greater(gaps, _GAP_NS))
    if len(wide) >= _MOST_RANGES:
        order = pc.sort_indices(pc.take(gaps, wide), sort_keys=[("", "descending")])
        wide = pc.take(wide, order[: _MOST_RANGES - 1])
    cuts = sorted(wide.to_pylist())
    bounds = zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(starts) - 1], strict=True)
    return [(starts[first].as_py(), starts[last].as_py()) for first, last in bounds]


def _ask(
    connection: DuckDBPyConnection, query: str, values: dict[str, Any] | None = None, **tables: pa.Table
) -> pa.Table:
    """Return the answer to a query over some Arrow tables."""
    for name, table in tables.items():
        connection.register(name, table)
    try:
        return connection.sql(query, params=values or None).to_arrow_table()
    finally:
        for name in tables:
            connection.unregister(name)
