"""The commit log of a Delta Lake table, written and read without a library: a few JSON lines a commit.

Ours because a commit must be on disk before the write-ahead log is cut, must carry the log's position, and must not
cost a cold command an import. Any Delta reader can read the table; the tests hold it to deltalake's.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.store.local import checkpoint, durable
from stagetrace.store.local.snapshot import APP, PARTITION, Action, ClockReading, File, Snapshot

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
) -> Snapshot:
    """Write one commit durably and return the table after it."""
    added, removed = list(added), list(removed)
    after = before.next(added, removed, stored, clock)
    now = now_ms()
    actions: list[Action] = [{"add": file.add()} for file in added]
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
            if max((-1, *checkpoint.versions(names), *_commits(names))) <= snapshot.version:
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
    for version in checkpoint.versions(_names(table)):
        if version <= snapshot.version:
            break
        try:
            return checkpoint.read(table / LOG, version)
        except FileNotFoundError:  # two newer ones were written since
            return _from_checkpoint(table, snapshot, damaged)
        except ValueError as error:
            path = checkpoint.path_of(table / LOG, version)
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
