"""The commit log of a Delta Lake table, written and read without a library: a few JSON lines a commit.

Ours because a commit must be on disk before the write-ahead log is cut, must carry the log's position, and must not
cost a cold command an import. Any Delta reader can read the table; the tests hold it to deltalake's.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from stagetrace.errors import StoreError
from stagetrace.store.database import connect
from stagetrace.store.local.wal import sync_folder

LOG: Final = "_delta_log"
APP: Final = "stagetrace"
PARTITION: Final = "entry"
_CHECKPOINT: Final = "_last_checkpoint"
CHECKPOINT_EVERY: Final = 64
_BYTES_TAG: Final = "stagetrace.bytes"
_COLUMNS_TAG: Final = "stagetrace.columns"


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
    generation: int = 0  # of the columns (`columns.GENERATION`) that its spans were stored with, at least

    def add(self) -> dict[str, Any]:
        """Return the Delta action that adds it."""
        bounds = (("minValues", self.min_start, self.min_sequence), ("maxValues", self.max_start, self.max_sequence))
        stats = {"numRecords": self.rows} | {
            name: {"start_unix_nano": start, "seq": sequence} for name, start, sequence in bounds
        }
        return {
            "path": self.path,
            "partitionValues": {PARTITION: str(self.entry).lower()},
            "size": self.size,
            "modificationTime": _now_ms(),
            "dataChange": True,
            "stats": json.dumps(stats),
            "tags": {_BYTES_TAG: str(self.raw), _COLUMNS_TAG: str(self.generation)},
        }

    @classmethod
    def of(cls, add: dict[str, Any]) -> File:
        """Return the file that an action adds."""
        stats = json.loads(add["stats"])
        low, high, tags = stats["minValues"], stats["maxValues"], dict(add["tags"])
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
            generation=int(tags.get(_COLUMNS_TAG) or 0),
        )


@dataclass(frozen=True)
class Snapshot:
    """The table as of one version; `stored` is the number of the last request that is in it."""

    version: int = -1
    files: dict[str, File] = field(default_factory=dict)
    stored: int = 0

    def next(self, added: Iterable[File], removed: Iterable[str], stored: int) -> Snapshot:
        """Return the table after one more commit."""
        gone = set(removed)
        files = {path: file for path, file in self.files.items() if path not in gone}
        files.update((file.path, file) for file in added)
        return Snapshot(self.version + 1, files, max(self.stored, stored))


def create(table: Path, schema: list[tuple[str, str]]) -> Snapshot:
    """Make an empty table whose columns have these Delta types."""
    (table / LOG).mkdir(parents=True, exist_ok=True)
    fields = [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in schema]
    metadata = {
        "id": str(uuid.uuid4()),
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": [PARTITION],
        "configuration": {},
        "createdTime": _now_ms(),
    }
    _write(table, 0, [{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": metadata}])
    return Snapshot(version=0)


def commit(table: Path, before: Snapshot, added: Iterable[File], removed: Iterable[str], stored: int) -> Snapshot:
    """Write one commit durably and return the table after it."""
    added, removed = list(added), list(removed)
    after = before.next(added, removed, stored)
    actions: list[dict[str, Any]] = [{"add": file.add()} for file in added]
    actions += [
        {"remove": {"path": path, "deletionTimestamp": _now_ms(), "dataChange": True, "extendedFileMetadata": False}}
        for path in removed
    ]
    actions.append({"txn": {"appId": APP, "version": after.stored, "lastUpdated": _now_ms()}})
    _write(table, after.version, actions)
    return after


def load(table: Path, known: Snapshot | None = None) -> Snapshot:
    """Return the newest version of the table; only commits after `known` are read. Raise StoreError if damaged."""
    snapshot = known or Snapshot()
    pointer = table / LOG / _CHECKPOINT
    while True:
        path = _path(table, snapshot.version + 1)
        try:
            lines = path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            later = _later(path)  # before the pointer, which is written before a commit is dropped
            newest = json.loads(pointer.read_text("utf-8"))["version"] if pointer.exists() else -1
            if newest > snapshot.version:
                snapshot = _load_checkpoint(table, newest)
            elif not later:
                return snapshot
            elif path.name not in later:
                raise StoreError(
                    f"cannot read the store beyond commit {snapshot.version}: {path} is missing, later ones are there\n"
                    "put it back from a copy, or name another store"
                ) from None
            continue
        try:
            actions = [json.loads(line) for line in lines if line]
            snapshot = replace(
                snapshot.next(
                    [File.of(action["add"]) for action in actions if "add" in action],
                    [action["remove"]["path"] for action in actions if "remove" in action],
                    max((action["txn"]["version"] for action in actions if "txn" in action), default=0),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"cannot read {path}, the list of what the store holds: {error!r}\n"
                "put it back from a copy, or name another store"
            ) from None


def checkpoint(table: Path, version: int) -> None:
    """Write a checkpoint of `version` and drop the commits before it, which keeps the log short."""
    from deltalake import DeltaTable

    delta = DeltaTable(str(table))
    delta.create_checkpoint()
    sync_folder(table / LOG)
    for old in sorted((table / LOG).glob("*.json")):
        if old.stem.isdigit() and int(old.stem) <= min(version, delta.version()) - CHECKPOINT_EVERY:
            old.unlink(missing_ok=True)
    for old in sorted((table / LOG).glob("*.checkpoint.parquet")):
        if int(old.name.split(".")[0]) < min(version, delta.version()) - CHECKPOINT_EVERY:
            old.unlink(missing_ok=True)


def _load_checkpoint(table: Path, version: int) -> Snapshot:
    path = table / LOG / f"{version:020d}.checkpoint.parquet"
    with connect() as connection:  # PyArrow would take a fifth of a second more to import
        rows = connection.execute("SELECT add, txn FROM read_parquet($1)", [str(path)]).fetchall()
    files = [File.of(add) for add, _ in rows if add is not None and add["path"] is not None]
    stored = max((txn["version"] for _, txn in rows if txn and txn["appId"] == APP), default=0)
    return Snapshot(version, {file.path: file for file in files}, stored)


def _later(first: Path) -> list[str]:
    """Return the names of the commits from this one on; names of one length are ordered as their numbers are."""
    try:
        names = os.listdir(first.parent)  # noqa: PTH208 -- each look at a store asks, and Path takes three times as long
    except FileNotFoundError:
        return []
    return [name for name in names if len(name) == len(first.name) and name.endswith(".json") and name >= first.name]


def _path(table: Path, version: int) -> Path:
    return table / LOG / f"{version:020d}.json"


def _write(table: Path, version: int, actions: list[dict[str, Any]]) -> None:
    """Write a commit that either is there as a whole, durably, or is not; FileExistsError if another took its place."""
    temporary = table / LOG / f".{uuid.uuid4().hex}.tmp"
    lines = [{"commitInfo": {"timestamp": _now_ms(), "operation": "WRITE", "engineInfo": APP}}, *actions]
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, _path(table, version))
        sync_folder(table / LOG)
    finally:
        temporary.unlink(missing_ok=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
