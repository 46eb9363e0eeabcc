"""Spans that are acknowledged and not in the table yet, as Arrow tables that grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.otlp.decoder_columns import SEQUENCE, arrow, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from stagetrace.otlp.decoder import Decoded

_SEALED_ROWS: Final = 8192  # Arrow takes a fifth of the memory of Python's lists


class Tail:
    """Requests in order of their numbers. Not safe for several threads."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.last = 0  # number of the newest request
        self._tables: list[pa.Table] = []
        self._open: list[tuple[int, Decoded]] = []
        self._open_rows = 0

    def add(self, sequence: int, decoded: Decoded, size: int) -> None:
        """Take in one request of `size` bytes."""
        self._open.append((sequence, decoded))
        self._open_rows += decoded.accepted
        self.rows += decoded.accepted
        self.bytes += size
        self.last = sequence
        if self._open_rows >= _SEALED_ROWS:
            self._seal()

    def over(self, rows: int, size: int) -> bool:
        """Tell whether it holds at least so many spans or bytes."""
        return self.rows >= rows or self.bytes >= size

    def tables(self) -> list[pa.Table]:
        """Return all spans."""
        self._seal()
        return list(self._tables)

    def _seal(self) -> None:
        if self._open_rows:
            self._tables.append(with_sequence(self._open))
        self._open, self._open_rows = [], 0


def with_sequence(requests: Iterable[tuple[int, Decoded]]) -> pa.Table:
    """Return the spans of some requests with the number of theirs."""
    pa = arrow()
    requests = list(requests)
    spans = table([piece for _, decoded in requests for piece in decoded.pieces])
    numbers: list[int] = []
    for sequence, decoded in requests:
        numbers += [sequence] * decoded.accepted
    return spans.append_column(SEQUENCE, pa.array(numbers, pa.int64()))
