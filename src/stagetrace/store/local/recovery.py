"""After a crash: move acknowledged spans from the log into the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stagetrace import log
from stagetrace.otlp.decode.columns import joined
from stagetrace.otlp.decode.request import MalformedRequest
from stagetrace.store.local import wal
from stagetrace.store.local.tail import Tail

if TYPE_CHECKING:
    from stagetrace.store.local.table import Table


def recover(folder: Path, table: Table, at_once: int) -> None:
    """Move the log's requests behind the table into it, about `at_once` bytes at a time, and delete the log.

    Killed in the middle, it is done again: the table knows up to which request it has them.
    """
    tail = Tail()
    replay = wal.Replay(folder, table.snapshot.stored)
    for frame in replay:
        try:
            tail.replay(frame)
        except MalformedRequest:  # cannot have been acknowledged
            continue
        if tail.bytes >= at_once:
            table.append(joined(tail.tables()), tail.last)
            tail = Tail()
    if tail.rows:
        table.append(joined(tail.tables()), tail.last)
    if replay.lost:
        log.error(f"{lost_requests(replay.lost)} (store {folder.parent}); all others are there")
    for _, path in replay.segments:
        path.unlink()


def lost_requests(count: int) -> str:
    """Return the sentence for requests that were acknowledged and are not there."""
    return f"{count} requests are missing: their part of the log, or the commit with them, was damaged or deleted"
