"""Reader of `s3://BUCKET/PREFIX`: the files of a question's time are fetched, and asked as those of a local store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from stagetrace import log
from stagetrace.errors import StoreError, UnknownTrace
from stagetrace.store.answers import named_in
from stagetrace.store.base import WHOLE, Breaches, Selection, Trace, TraceIds, bad
from stagetrace.store.local import folder, relation
from stagetrace.store.local.delta import File, Snapshot
from stagetrace.store.local.folder import View
from stagetrace.store.local.reader import LocalReader
from stagetrace.store.local.relation import ALL_TIME, DistinctTail
from stagetrace.store.s3.archive import Archive
from stagetrace.store.s3.cache import Cache

# Between a request and any other span of its trace. Without a bound, each filter would fetch the whole archive.
AROUND_NS: Final = 86_400 * 10**9
NAMES_BYTES: Final = 256 << 20  # of the newest files, where names are looked for that the asked time does not have


def open_url(url: str) -> ArchiveReader:
    """Return a reader of the archive at `url`. Raise StoreError for a bad URL."""
    try:
        return ArchiveReader(Archive(url))
    except ValueError as error:
        raise bad(url, str(error).partition(": ")[2]) from None


class ArchiveReader(LocalReader):
    """Reader of one archive: a local one whose files are fetched. What is in no file there, it cannot know."""

    capabilities = WHOLE

    def __init__(self, archive: Archive) -> None:
        """Open the archive's cache; nothing is sent yet."""
        self._archive = archive
        self._cache = Cache(archive)
        self._checked = False
        self._around = ALL_TIME  # of the last selection: traces are looked for there first
        self._reason: str | None = None  # of the last question
        self._asked: Selection | None = None  # while its breaches are looked for
        self._most: int | None = None  # bytes that the files of a question may take; None: all that the cache takes
        database = relation.database(self._cache.folder, relation.MEMORY)
        super().__init__(self._cache.folder, lambda: View(self._cache.folder, Snapshot()), database, DistinctTail())
        self.name = archive.url

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` specifies; if there is none, the newest is of new files."""
        self._asked = selection
        try:
            return super().breaches(selection)
        finally:
            self._asked = self._most = None

    def check_names(self, selection: Selection) -> None:
        """Raise StoreError if no request of the newest files has a name of `selection`."""
        self._most = NAMES_BYTES
        try:
            super().check_names(selection)
        except StoreError as error:
            raise error if self._reason is None else StoreError(f"{error}\n{self._reason}") from None
        finally:
            self._most = None

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` specifies, out of the newest files if not all are here."""
        self._around = ALL_TIME
        try:
            return super().trace(trace_id)
        except UnknownTrace as error:
            raise error if self._reason is None else UnknownTrace(f"{error}\n{self._reason}") from None

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces: those around the time of the last selection, then of all times the others."""
        missing, around = set(trace_ids), self._around
        for window in dict.fromkeys((around, ALL_TIME)):
            self._around = window
            for found in super().traces([one for one in trace_ids if one in missing]) if missing else ():
                missing.discard(found.trace_id)
                yield replace(found, reason=self._reason)
        self._around = around

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, as `Reader.trace_ids` specifies."""
        self._around = ALL_TIME
        return replace(super().trace_ids(prefix), reason=self._reason)

    def services(self) -> tuple[str, ...]:
        """Return the names of all services that have spans in the files that the cache takes, sorted."""
        self._around = ALL_TIME
        found = super().services()
        if self._reason is not None and self._most is None:
            log.warning(f"services: {self._reason}")
        return found

    def _check(self, selection: Selection) -> None:
        named = replace(named_in(selection), since_ns=selection.since_ns, until_ns=selection.until_ns)
        if named.is_filtered and not self.has(named):
            self.check_names(selection)

    def _window(self, selection: Selection) -> tuple[int, int]:
        since, until = selection.since_ns, selection.until_ns
        self._most = NAMES_BYTES if self._asked is not None and since < self._asked.since_ns else self._most
        self._around = max(ALL_TIME[0], since - AROUND_NS), min(ALL_TIME[1], until + AROUND_NS)
        return self._around if selection.is_filtered else (since, until)

    def _files(
        self, view: View, window: tuple[int, int], *, entry: bool | None = None
    ) -> tuple[View, list[File], list[File]]:
        """Return a view of the files of a time window, which are here then.

        Spans of which another file may hold a copy stand behind the others, as those in the log of a local store do.
        """
        if not self._checked:
            self._archive.check()
            self._checked = True
        listed = self._archive.files(*(self._around if window == ALL_TIME else window))
        wanted = [file for file in listed if file.late or entry in (None, file.entry)]
        files, self._reason = self._cache.take(wanted, self.progress, self._most)
        plain = {file.path: file for file in files if not file.late}
        tail = tuple(folder.read(self._cache.folder, [file]) for file in files if file.late)
        view = replace(view, snapshot=Snapshot(files=plain), tail=tail)
        # The cache lost a file, or it is none that a local store writes.
        whole, damaged = view.split(*ALL_TIME)
        if damaged:
            raise StoreError(
                f"{self._archive.url}/{damaged[0].path} cannot be read\nput it back from a copy, or delete it"
            )
        return view, whole, []

    def _cuts(self, view: View, damaged: Sequence[File]) -> list[str]:
        return [*super()._cuts(view, damaged), *([] if self._reason is None else [self._reason])]
