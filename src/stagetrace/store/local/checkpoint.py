"""Checkpoints of the table: its whole state in one Parquet file, so that old commits can be deleted.

The newest two stay, and all commits behind the older one. Whichever of them is damaged, the others give the same state.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.store.local import durable
from stagetrace.store.local.snapshot import Action, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

_SUFFIX: Final = ".checkpoint.parquet"
_POINTER: Final = "_last_checkpoint"  # for other Delta readers; this one goes by the files' names
_KEPT: Final = 2


def versions(names: Iterable[str]) -> list[int]:
    """Return the versions of which there are checkpoints, the newest first, out of the log's file names."""
    stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return sorted((int(stem) for stem in stems if stem.isdigit()), reverse=True)


def path_of(log: Path, version: int) -> Path:
    """Return the path of a checkpoint in the folder of commits."""
    return log / f"{version:020d}{_SUFFIX}"


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
    durable.replace(log / _POINTER, json.dumps(pointer).encode())
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
