"""Jaeger's results, decoded to stored columns, and the finds of a selection in them."""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from stagetrace.otlp.decode import arrow_table, columns
from stagetrace.otlp.decode.request import decode
from stagetrace.store import stored
from stagetrace.store.base import Closing, Selection
from stagetrace.store.database import close, connect
from stagetrace.store.jaeger.search_windows import Found, Picked
from stagetrace.store.load import define, set_variables

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.otlp.decode.request import Decoded

_ENTRIES: Final = "SELECT DISTINCT -start_unix_nano, trace_id, span_id FROM matching"
# A whole trace is found by its newest span of the service in the window.
_TRACES: Final = """
    SELECT -max(start_unix_nano), trace_id, '' FROM loaded
    WHERE service = getvariable('service') AND start_unix_nano >= getvariable('since_ns')
        AND start_unix_nano < getvariable('until_ns')
    GROUP BY trace_id
"""


class Columns(Closing):
    """Applies a selection to one result after the other."""

    def __init__(self, selection: Selection) -> None:
        """Prepare a database. Raise StoreError where DuckDB or PyArrow is not installed."""
        self._empty = columns.schema().empty_table()
        self._connection = connect()
        stored.add_functions(self._connection)
        self._connection.register("answer", self._empty)
        entries = f"SELECT *, kind = {stored.SERVER_KIND} AS is_entry FROM answer"
        query = stored.loaded(f"{stored.nothing()} UNION ALL BY NAME {entries}", selection.segments)
        define(self._connection, query, selection)
        self._query = _ENTRIES if selection.is_filtered else _TRACES
        self._rejected = 0
        self._reason: str | None = None

    def pick(self, messages: Iterator[bytes], selection: Selection) -> Picked:
        """Return each selected entry span of a result, or, of a selection by time alone, each trace.

        What comes with each is the table of the whole answer.
        """
        found: list[Decoded] = []
        for message in messages:
            decoded = decode(message)
            found.append(decoded)
            self._rejected += decoded.rejected
            self._reason = self._reason or decoded.reason
        if not any(one.accepted for one in found):
            return Picked([], 0)
        spans = arrow_table.table(found)
        self._connection.register("answer", spans)
        set_variables(self._connection, selection)
        picked = self._connection.execute(self._query).fetchall()
        ((traces,),) = self._connection.execute("SELECT count(DISTINCT trace_id) FROM answer").fetchall()
        return Picked([Found(start, trace_id, span_id, spans) for start, trace_id, span_id in picked], traces)

    def unreadable(self) -> Iterable[str]:
        """Return a text for the spans that could not be decoded, if any."""
        return [f"{self._rejected} spans cannot be read: {self._reason}"] if self._rejected else []

    def close(self) -> None:
        """Release the database."""
        close(self._connection)


def of_traces(spans: pa.Table, trace_ids: Sequence[str]) -> pa.Table:
    """Return those spans that are of one of these traces."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array([bytes.fromhex(one) for one in trace_ids], pa.binary())
    return spans.filter(pc.is_in(spans["trace_id"], wanted))
