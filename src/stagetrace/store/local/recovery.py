"""After a crash: move acknowledged spans from the log into the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stagetrace.otlp.decode.columns import joined
from stagetrace.otlp.decode.request import MalformedRequest, decode
from stagetrace.store.local import wal
from stagetrace.store.local.tail import Tail

if TYPE_CHECKING:
    from stagetrace.store.local.table import Table


def recover(log: Path, table: Table, at_once: int) -> None:
    """Move the log's requests behind the table into it, about `at_once` bytes at a time, and delete the log.

    Killed in the middle, it is done again: the table knows up to which request it has them.
    """
    tail = Tail()
    found = wal.segments(log)
    for _, path in found:
        for sequence, request in wal.read(path, table.snapshot.stored):
            try:
                tail.add(sequence, decode(request), len(request))
            except MalformedRequest:  # cannot have been acknowledged
                continue
            if tail.bytes >= at_once:
                table.append(joined(tail.tables()), tail.last)
                tail = Tail()
    if tail.rows:
        table.append(joined(tail.tables()), tail.last)
    for _, path in found:
        path.unlink()
