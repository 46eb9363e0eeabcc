"""The exact counts of judged requests that services send as the metric `sla.requests`, kept beside the spans.

One SQLite file, which is on disk before an export is acknowledged. A series is what one process counts under one set
of attributes, from a start on; a row of it is a value with the first and the last time at which it was so. Readers get
the sums by route, objective and verdict.
"""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from stagetrace.analysis.estimates import Counted
from stagetrace.errors import StoreError
from stagetrace.store.count_series import Series, counted
from stagetrace.store.local.delta import now_ms
from stagetrace.store.local.durable import sync_folder
from stagetrace.system.access import open_own

FILE: Final = "counts.sqlite"
MOST_ROWS: Final = 1_000_000
_LOOK_EACH: Final = 64  # exports, at whether there are too many rows
_REMEDY: Final = "put it back from a copy, or delete it: services count on"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS counts (
    service TEXT, instance TEXT, start INTEGER, route TEXT, objective TEXT, verdict TEXT,
    value INTEGER, first INTEGER, last INTEGER, received INTEGER, rest TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS by_time ON counts (last);
CREATE INDEX IF NOT EXISTS by_attributes ON counts (service, instance, start, route, objective, verdict, rest, last);
"""
_SERIES: Final = "service, instance, start, route, objective, verdict, rest"
_MARKS: Final = "(?, ?, ?, ?, ?, ?, ?)"


class Point(NamedTuple):
    """How many requests one process had judged at a time since its start; `is_delta`: since the point before."""

    service: str
    instance: str  # distinguishes processes of one service
    start_ns: int
    route: str
    objective: str
    verdict: str
    value: int
    time_ns: int
    is_delta: bool = False
    rest: str = ""  # its other attributes


class CountStore:
    """The one writer. Safe for several threads: `_lock` guards the connection."""

    def __init__(self, folder: Path, retention_s: float | None = None, now: Callable[[], int] = now_ms) -> None:
        """Keep counts as long after they were received; `now` returns the time in ms."""
        self._lock = threading.Lock()
        self._now = now
        self._retention_s = retention_s
        self._appended = 0
        self._path = folder / FILE
        self._opened: sqlite3.Connection | None = None  # from the first counts on

    def append(self, points: Sequence[Point]) -> None:
        """Store points durably, all or none; one that comes again or late changes nothing. Raise StoreError."""
        with self._lock:
            try:
                self._open()
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    known = {process: self._last_of(*process) for process in {point[:3] for point in points}}
                    for point in sorted(points, key=lambda one: one.time_ns):
                        self._add(point, known[point[:3]])
                    self._forget()
                    self._connection.execute("COMMIT")
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"cannot store counts in {self._path}: {error}\n{_REMEDY}") from None
            except OSError as error:
                raise StoreError(f"cannot store counts in {self._path}: {error.strerror}\n{_REMEDY}") from None

    def _open(self) -> None:
        if self._opened is None:
            os.close(open_own(self._path, os.O_RDWR | os.O_CREAT))
            sync_folder(self._path.parent)
            opened = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            try:
                opened.execute("PRAGMA synchronous = FULL")
                opened.executescript(_SCHEMA)
            except sqlite3.Error:
                opened.close()
                raise
            self._opened = opened

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._opened is not None  # noqa: S101
        return self._opened

    def _last_of(self, *process: str | int) -> int | None:
        """Return the time of the last counts of a process."""
        found = "SELECT max(last) FROM counts WHERE (service, instance, start) = (?, ?, ?)"
        (last,) = self._connection.execute(found, process).fetchone()
        return last  # type: ignore[no-any-return]

    def _add(self, point: Point, known_until: int | None) -> None:
        """Add a point; `known_until`: the time of the counts that its process has sent before."""
        received = self._now() * 1_000_000
        start = 0 if point.is_delta else point.start_ns
        series = (point.service, point.instance, start, point.route, point.objective, point.verdict, point.rest)
        found = self._connection.execute(
            f"SELECT rowid, value, last FROM counts WHERE ({_SERIES}) = {_MARKS} ORDER BY last DESC LIMIT 1",
            series,
        ).fetchone()
        row, before, last = found or (None, 0, None)
        if last is not None and point.time_ns <= last:
            return
        value = before + point.value if point.is_delta else point.value
        if row is None and point.is_delta:  # counted from its own start on
            self._connection.execute(_INSERT, (*series, 0, point.start_ns, point.start_ns, received))
        if (
            row is None and known_until is not None and 0 < start < known_until < point.time_ns
        ):  # it had not begun by then
            self._connection.execute(_INSERT, (*series, 0, start, known_until, received))
        if row is not None and value == before:
            update = "UPDATE counts SET last = ?, received = ? WHERE rowid = ?"
            self._connection.execute(update, (point.time_ns, received, row))
        else:
            self._connection.execute(_INSERT, (*series, value, point.time_ns, point.time_ns, received))

    def _forget(self) -> None:
        if self._retention_s is not None:
            before = self._now() * 1_000_000 - int(self._retention_s * 1e9)
            self._connection.execute("DELETE FROM counts WHERE received < ?", (before,))
        self._appended += 1
        if self._appended % _LOOK_EACH:
            return
        (rows,) = self._connection.execute("SELECT count(*) FROM counts").fetchone()
        if rows > MOST_ROWS:
            oldest = "SELECT rowid FROM counts ORDER BY last LIMIT ?"
            self._connection.execute(f"DELETE FROM counts WHERE rowid IN ({oldest})", (rows - MOST_ROWS,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()


_INSERT: Final = (
    f"INSERT INTO counts ({_SERIES}, value, first, last, received) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def read(folder: Path, since_ns: int, until_ns: int) -> list[Counted]:
    """Return the counts of each service in a window, as far as its points reach."""
    path = folder / FILE
    if not path.exists() or not path.stat().st_size:  # empty: nothing was stored before its writer ended
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(
                f"SELECT {_SERIES}, value, first, last FROM counts WHERE last >= ? AND first <= ? "
                f"ORDER BY {_SERIES}, last",
                (since_ns, until_ns),
            ).fetchall()
            every = [Series(of, [row[7:] for row in found]) for of, found in groupby(rows, key=lambda row: row[:7])]
            for series in every:  # and its counts before and after the window
                for place, which, edge, order in ((0, "last <", since_ns, "DESC"), (-1, "first >", until_ns, "ASC")):
                    near = connection.execute(
                        f"SELECT value, first, last FROM counts WHERE ({_SERIES}) = {_MARKS} "
                        f"AND {which} ? ORDER BY last {order} LIMIT 1",
                        (*series.key, edge),
                    ).fetchall()
                    at = place % (len(series.values) + 1)
                    series.values[at:at] = near
    except sqlite3.Error as error:
        raise StoreError(f"cannot read {path}: {error}\n{_REMEDY}") from None
    return counted(every, since_ns, until_ns)
