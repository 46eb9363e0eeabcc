"""Spans that are acknowledged and not in the table yet, as Arrow tables that grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stagetrace.otlp.decode.arrow_table import repeated, table
from stagetrace.otlp.decode.columns import SEQUENCE

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.otlp.decode.request import Decoded
    from stagetrace.store.local.wal import Frame

# Arrow takes a fifth of the memory of Python's lists. Not too much at once: what was one large block of memory is, once
# free, full of holes.
_SEALED_ROWS: Final = 8192
_SEALED_BYTES: Final = 1 * 1024 * 1024


class Tail:
    """Requests in order of their numbers. Not safe for several threads."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.last = 0  # number of the newest request
        self._tables: list[pa.Table] = []
        self._open: list[tuple[int, Decoded]] = []
        self._open_rows = self._open_bytes = 0

    def add(self, sequence: int, decoded: Decoded, size: int) -> None:
        """Take in one request of `size` bytes."""
        self._open.append((sequence, decoded))
        self._open_rows += decoded.accepted
        self._open_bytes += size
        self.rows += decoded.accepted
        self.bytes += size
        self.last = sequence
        if self._open_rows >= _SEALED_ROWS or self._open_bytes >= _SEALED_BYTES:
            self._seal()

    def replay(self, frame: Frame) -> None:
        """Take in one request of the log. Raise MalformedRequest."""
        from stagetrace.otlp.decode.request import decode  # a command that finds an empty log does without
        from stagetrace.otlp.decode.spans import EVER

        decoded = decode(frame.request, latest=EVER if frame.latest is None else frame.latest)
        self.add(frame.sequence, decoded, len(frame.request))

    def over(self, rows: int, size: int) -> bool:
        """Return whether it holds at least so many spans or bytes."""
        return self.rows >= rows or self.bytes >= size

    def tables(self) -> list[pa.Table]:
        """Return all spans."""
        self._seal()
        return list(self._tables)

    def _seal(self) -> None:
        if self._open_rows:
            self._tables.append(with_sequence(self._open))
        self._open, self._open_rows, self._open_bytes = [], 0, 0


def with_sequence(requests: Sequence[tuple[int, Decoded]]) -> pa.Table:
    """Return the spans of some requests with the number of theirs."""
    spans = table([decoded for _, decoded in requests])
    return spans.append_column(SEQUENCE, repeated([(number, one.accepted) for number, one in requests], "q"))
