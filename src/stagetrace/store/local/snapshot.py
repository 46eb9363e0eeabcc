"""One version of the table: its files, how far the log is in it, and the store's clock."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

APP: Final = "stagetrace"
CLOCK: Final = "stagetrace.clock"  # as an application of Delta's: its "version" is the store's time in ms
PARTITION: Final = "entry"
_BYTES_TAG: Final = "stagetrace.bytes"
_COLUMNS_TAG: Final = "stagetrace.columns"
_RECEIVED_TAG: Final = "stagetrace.received"

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

    def add(self) -> Action:
        """Return the Delta action that adds it."""
        bounds = (("minValues", self.min_start, self.min_sequence), ("maxValues", self.max_start, self.max_sequence))
        stats = {"numRecords": self.rows} | {
            name: {"start_unix_nano": start, "seq": sequence} for name, start, sequence in bounds
        }
        tags = {_BYTES_TAG: self.raw, _COLUMNS_TAG: self.generation, _RECEIVED_TAG: self.received.first}
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
