"""The table's commit log (Delta Lake, without a library), its versions and checkpoints, and the store's own clock."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.store.local import durable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

# --- One version of the table: its files, how far the log is in it, and the store's clock.

APP: Final = "stagetrace"
CLOCK: Final = "stagetrace.clock"  # as an application of Delta's: its "version" is the store's time in ms
PARTITION: Final = "entry"
_BYTES_TAG: Final = "stagetrace.bytes"
_COLUMNS_TAG: Final = "stagetrace.columns"
_RECEIVED_TAG: Final = "stagetrace.received"
_ARCHIVE_TAG: Final = "stagetrace.archive"
_LATE_TAG: Final = "stagetrace.late"
CLAIMED: Final = 1  # by an archive: it may have been copied, so no other file takes its spans in
ARCHIVED: Final = 2

Action = dict[str, Any]


class Received(NamedTuple):
    """When the first and the last of some spans were received, by the store's clock, in ms."""

    first: int
    last: int

    @classmethod
    def of(cls, parts: Iterable[Received]) -> Received:
        """Return the bounds of them all."""
        firsts, lasts = zip(*parts, strict=True)
        return cls(min(firsts), max(lasts))


@dataclass(frozen=True)
class File:
    """One Parquet file of the table, with bounds of what is in it."""

    path: str  # in the table's folder
    size: int
    rows: int
    entry: bool
    min_start: int
    max_start: int
    min_sequence: int
    max_sequence: int
    raw: int  # bytes of its spans in memory, about
    received: Received
    generation: int = 0  # of the columns (`columns.GENERATION`) that its spans were stored with, at least
    archive: int = 0  # CLAIMED or ARCHIVED
    late: bool = False  # it may hold copies of spans that are in an archive in another file

    def add(self) -> Action:
        """Return the Delta action that adds it."""
        bounds = (("minValues", self.min_start, self.min_sequence), ("maxValues", self.max_start, self.max_sequence))
        stats = {"numRecords": self.rows} | {
            name: {"start_unix_nano": start, "seq": sequence} for name, start, sequence in bounds
        }
        tags = {_BYTES_TAG: self.raw, _COLUMNS_TAG: self.generation, _RECEIVED_TAG: self.received.first}
        tags |= {name: int(value) for name, value in ((_ARCHIVE_TAG, self.archive), (_LATE_TAG, self.late)) if value}
        return {
            "path": self.path,
            "partitionValues": {PARTITION: str(self.entry).lower()},
            "size": self.size,
            "modificationTime": self.received.last,
            "dataChange": True,
            "stats": json.dumps(stats),
            "tags": {name: str(value) for name, value in tags.items()},
        }

    @classmethod
    def of(cls, add: Action) -> File:
        """Return the file that an action adds; one without a time of receipt counts as received when it was written."""
        stats = json.loads(add["stats"])
        low, high, tags = stats["minValues"], stats["maxValues"], dict(add["tags"])
        last = int(add["modificationTime"])
        return cls(
            path=add["path"],
            size=add["size"],
            rows=stats["numRecords"],
            entry=dict(add["partitionValues"])[PARTITION] == "true",
            min_start=low["start_unix_nano"],
            max_start=high["start_unix_nano"],
            min_sequence=low["seq"],
            max_sequence=high["seq"],
            raw=int(tags[_BYTES_TAG]),
            received=Received(int(tags.get(_RECEIVED_TAG) or last), last),
            generation=int(tags.get(_COLUMNS_TAG) or 0),
            archive=int(tags.get(_ARCHIVE_TAG) or 0),
            late=tags.get(_LATE_TAG) == "1",
        )


class ClockReading(NamedTuple):
    """The store's clock and the system's at one moment, in ms."""

    store: int
    system: int


@dataclass(frozen=True)
class Snapshot:
    """The table as of one version; `stored` is the number of the last request that is in it."""

    version: int = -1
    files: dict[str, File] = field(default_factory=dict)
    stored: int = 0
    clock: ClockReading | None = None  # at the last commit; None in a store of an older stagetrace
    protocol: Action | None = None
    metadata: Action | None = None

    def next(
        self, added: Iterable[File], removed: Iterable[str], stored: int, clock: ClockReading | None = None
    ) -> Snapshot:
        """Return the table after one more commit."""
        gone = set(removed)
        files = {path: file for path, file in self.files.items() if path not in gone}
        files.update((file.path, file) for file in added)
        return replace(
            self,
            version=self.version + 1,
            files=files,
            stored=max(self.stored, stored),
            clock=clock or self.clock,
        )

    def with_actions(self, actions: Iterable[Action]) -> Snapshot:
        """Return the table after the actions of the next commit. Raise KeyError, TypeError, ValueError if damaged."""
        by_kind: dict[str, list[Action]] = {}
        for action in actions:
            for kind, content in action.items():
                by_kind.setdefault(kind, []).append(content)
        txns = {one["appId"]: one for one in by_kind.get("txn", ())}
        clock = txns.get(CLOCK)
        after = self.next(
            [File.of(one) for one in by_kind.get("add", ())],
            [one["path"] for one in by_kind.get("remove", ())],
            txns[APP]["version"] if APP in txns else 0,
            None if clock is None else ClockReading(clock["version"], clock["lastUpdated"]),
        )
        return replace(
            after,
            protocol=by_kind.get("protocol", [self.protocol])[-1],
            metadata=by_kind.get("metaData", [self.metadata])[-1],
        )

    def txns(self, system_ms: int) -> list[Action]:
        """Return the actions that record how far the log is in the table, and its clock."""
        found = [{"appId": APP, "version": self.stored, "lastUpdated": system_ms}]
        if self.clock is not None:
            found.append({"appId": CLOCK, "version": self.clock.store, "lastUpdated": self.clock.system})
        return found


_CHECKPOINT_SUFFIX: Final = ".checkpoint.parquet"

# --- Checkpoints of the table: its whole state in one Parquet file, so that old commits can be deleted.
#
# The newest two stay, and all commits behind the older one. Whichever of them is damaged, the others give the same
# state.

_POINTER: Final = "_last_checkpoint"  # for other Delta readers; this one goes by the files' names
_KEPT: Final = 2


def versions(names: Iterable[str]) -> list[int]:
    """Return the versions of which there are checkpoints, the newest first, out of the log's file names."""
    stems = (name.removesuffix(_CHECKPOINT_SUFFIX) for name in names if name.endswith(_CHECKPOINT_SUFFIX))
    return sorted((int(stem) for stem in stems if stem.isdigit()), reverse=True)


def path_of(log: Path, version: int) -> Path:
    """Return the path of a checkpoint in the folder of commits."""
    return log / f"{version:020d}{_CHECKPOINT_SUFFIX}"


def write(log: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint durably, then drop the commits and checkpoints that are not needed any more.

    Raise OSError; then all is still there.
    """
    import pyarrow.parquet as pq

    table = _table(snapshot)
    temporary = durable.temporary_name(log)
    try:
        durable.make_file(temporary)
        pq.write_table(table, temporary)
        durable.sync(temporary)
        temporary.replace(path_of(log, snapshot.version))
    finally:
        temporary.unlink(missing_ok=True)
    durable.sync_folder(log)
    pointer = {"version": snapshot.version, "size": table.num_rows}
    durable.replace_file(log / _POINTER, json.dumps(pointer).encode())
    _drop_old(log, snapshot.version)


def _drop_old(log: Path, newest: int) -> None:
    """Delete checkpoints but the newest, and the commits up to the oldest of these. Without two, all commits stay."""
    names = os.listdir(log)  # noqa: PTH208 -- names are all that is needed
    found = [version for version in versions(names) if version <= newest]
    if len(found) < _KEPT:
        return
    oldest = found[_KEPT - 1]
    for version in found[_KEPT:]:
        path_of(log, version).unlink(missing_ok=True)
    for name in names:
        stem, _, kind = name.partition(".")
        if kind == "json" and stem.isdigit() and int(stem) <= oldest:
            (log / name).unlink(missing_ok=True)


def read(log: Path, version: int) -> Snapshot:
    """Return the state in a checkpoint. Raise OSError if it is not there, ValueError where it is damaged."""
    import duckdb  # a query needs it anyway, while PyArrow would take a fifth of a second more

    from stagetrace.store.database import connect

    path = path_of(log, version)
    path.stat()
    try:
        with connect() as connection:
            query = "SELECT protocol, metaData, txn, add FROM read_parquet($1)"
            rows = connection.execute(query, [str(path)]).fetchall()
        return Snapshot(version - 1).with_actions(_actions(rows))
    except (duckdb.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None


def _actions(rows: Iterable[tuple[Action | None, ...]]) -> Iterator[Action]:
    names = ("protocol", "metaData", "txn", "add")
    required = ("minReaderVersion", "id", "appId", "path")  # other writers fill what is absent with structs of NULL
    for row in rows:
        for name, key, content in zip(names, required, row, strict=True):
            if content is not None and content[key] is not None:
                yield {name: content}


def _table(snapshot: Snapshot) -> pa.Table:
    """Return the rows of a checkpoint, as the Delta protocol specifies them."""
    import pyarrow as pa

    rows: list[Action] = [{"protocol": snapshot.protocol}, {"metaData": snapshot.metadata}]
    rows += [{"txn": one} for one in snapshot.txns(0 if snapshot.clock is None else snapshot.clock.system)]
    rows += [{"add": file.add()} for file in snapshot.files.values()]
    return pa.Table.from_pylist(rows, _schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, whole, texts = pa.string(), pa.int64(), pa.map_(pa.string(), pa.string())
    columns: dict[str, dict[str, Any]] = {
        "protocol": {"minReaderVersion": pa.int32(), "minWriterVersion": pa.int32()},
        "metaData": {
            "id": text,
            "format": pa.struct({"provider": text, "options": texts}),
            "schemaString": text,
            "partitionColumns": pa.list_(text),
            "configuration": texts,
            "createdTime": whole,
        },
        "txn": {"appId": text, "version": whole, "lastUpdated": whole},
        "add": {
            "path": text,
            "partitionValues": texts,
            "size": whole,
            "modificationTime": whole,
            "dataChange": pa.bool_(),
            "stats": text,
            "tags": texts,
        },
        "remove": {"path": text, "deletionTimestamp": whole, "dataChange": pa.bool_()},
    }
    return pa.schema([pa.field(name, pa.struct(fields)) for name, fields in columns.items()])


# --- The commit log of a Delta Lake table, written and read without a library: a few JSON lines a commit.
#
# Ours because a commit must be on disk before the write-ahead log is cut, must carry the log's position, and must not
# cost a cold command an import. Any Delta reader can read the table; the tests hold it to deltalake's.

LOG: Final = "_delta_log"
_SUFFIX: Final = ".json"
CHECKPOINT_EVERY: Final = 64
_REMEDY: Final = "put it back from a copy, or name another store"


def create(table: Path, schema: list[tuple[str, str]]) -> Snapshot:
    """Make an empty table whose columns have these Delta types."""
    durable.make_folder(table)
    durable.make_folder(table / LOG)
    fields = [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in schema]
    metadata = {
        "id": str(uuid.uuid4()),
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": [PARTITION],
        "configuration": {},
        "createdTime": now_ms(),
    }
    protocol = {"minReaderVersion": 1, "minWriterVersion": 2}
    _write(table, 0, [{"protocol": protocol}, {"metaData": metadata}])
    return Snapshot(version=0, protocol=protocol, metadata=metadata)


def commit(
    table: Path,
    before: Snapshot,
    added: Iterable[File],
    removed: Iterable[str],
    stored: int,
    clock: ClockReading | None = None,
    *,
    changes: bool = True,
) -> Snapshot:
    """Write one commit durably and return the table after it; not `changes`: only of what is said about files."""
    added, removed = list(added), list(removed)
    after = before.next(added, removed, stored, clock)
    now = now_ms()
    actions: list[Action] = [{"add": {**file.add(), "dataChange": changes}} for file in added]
    actions += [
        {"remove": {"path": path, "deletionTimestamp": now, "dataChange": True, "extendedFileMetadata": False}}
        for path in removed
    ]
    actions += [{"txn": one} for one in after.txns(now)]
    _write(table, after.version, actions)
    return after


def load(table: Path, known: Snapshot | None = None) -> Snapshot:
    """Return the newest version of the table; only what came after `known` is read. Raise StoreError if damaged.

    A damaged checkpoint is replaced by an older one or by the commits, a damaged or missing commit by a later
    checkpoint.
    """
    snapshot = known or _from_checkpoint(table, Snapshot(), []) or Snapshot()
    while True:
        path = _path(table, snapshot.version + 1)
        try:
            snapshot = snapshot.with_actions(_read(path))
        except FileNotFoundError:
            names = _names(table)
            if max((-1, *versions(names), *_commits(names))) <= snapshot.version:
                return snapshot
            if path.name not in names:  # else it has come since
                snapshot = _beyond(table, snapshot, f"{path} is missing, later ones are there")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            snapshot = _beyond(table, snapshot, f"{path} is damaged ({error})")


def _read(path: Path) -> list[Action]:
    """Return the actions of a commit. Raise FileNotFoundError, ValueError where it ends too early."""
    actions: list[Action] = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    kinds = {kind for action in actions for kind in action}
    ours = any("commitInfo" in one and one["commitInfo"].get("engineInfo") == APP for one in actions)
    if not actions or (ours and not kinds & {"txn", "metaData"}):
        raise ValueError("its end is missing")
    return actions


def _beyond(table: Path, snapshot: Snapshot, problem: str) -> Snapshot:
    """Return the newest readable checkpoint after `snapshot`. Raise StoreError with the problem if there is none."""
    damaged: list[str] = []
    if (found := _from_checkpoint(table, snapshot, damaged)) is None:
        also = f"; {', '.join(damaged)} cannot be read either" if damaged else ""
        raise StoreError(
            f"cannot read the store beyond commit {snapshot.version}: {problem}{also}\n{_REMEDY}"
        ) from None
    return found


def _from_checkpoint(table: Path, snapshot: Snapshot, damaged: list[str]) -> Snapshot | None:
    """Return the newest readable checkpoint after `snapshot`, if there is one, and add those that are `damaged`."""
    for version in versions(_names(table)):
        if version <= snapshot.version:
            break
        try:
            return read(table / LOG, version)
        except FileNotFoundError:  # two newer ones were written since
            return _from_checkpoint(table, snapshot, damaged)
        except ValueError as error:
            path = path_of(table / LOG, version)
            log.once(str(path), f"{path} cannot be read, older ones and the commits stand in for it: {error}")
            damaged.append(path.name)
    return None


def _names(table: Path) -> list[str]:
    try:
        return os.listdir(table / LOG)  # noqa: PTH208 -- each look at a store asks, and Path takes three times as long
    except FileNotFoundError:
        return []


def _commits(names: Iterable[str]) -> list[int]:
    """Return the versions of which there are commits."""
    stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return [int(stem) for stem in stems if stem.isdigit()]


def _path(table: Path, version: int) -> Path:
    return table / LOG / f"{version:020d}{_SUFFIX}"


def _write(table: Path, version: int, actions: Sequence[Action]) -> None:
    """Write a commit that either is there as a whole, durably, or is not; FileExistsError if another took its place."""
    lines = [{"commitInfo": {"timestamp": now_ms(), "operation": "WRITE", "engineInfo": APP}}, *actions]
    data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    durable.write_new(_path(table, version), data.encode())


def now_ms() -> int:
    """Return the system's time."""
    return time.time_ns() // 1_000_000


# --- The store's own clock, by which spans grow old: what senders write, and a system clock that is set, do not count.
#
# It begins as the system's clock, runs on with the time that really passes while the store is open, and over the time
# for which the store was closed it trusts the system's clock up to `MOST_CLOSED`.

AHEAD_NS: Final = 3600 * 10**9  # by which a sender's clock may be ahead
MOST_CLOSED: Final = 0.5  # of the retention
_CLOSED_MS: Final = 86_400_000  # without a retention
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps


class Clock:
    """The clock of an open store. Safe for several threads: nothing of it changes."""

    def __init__(self, table: Snapshot, retention_s: float | None) -> None:
        """Go on from the time that the table was written at, or start with the system's time."""
        system = now_ms()
        last = table.clock or ClockReading(system, system)
        most = _CLOSED_MS if retention_s is None else int(retention_s * 1000 * MOST_CLOSED)
        self._begin = last.store + min(max(0, system - last.system), most)
        self._opened = _elapsed_ms()

    def now(self) -> int:
        """Return the store's time in ms."""
        return self._begin + _elapsed_ms() - self._opened

    def reading(self) -> ClockReading:
        """Return what goes into a commit."""
        return ClockReading(self.now(), now_ms())

    def latest_start_ns(self) -> int:
        """Return the latest start of a span that is accepted, by whichever clock is ahead: neither need be right."""
        return max(self.now(), now_ms()) * 1_000_000 + AHEAD_NS


def _elapsed_ms() -> int:
    return time.clock_gettime_ns(_ELAPSED) // 1_000_000
