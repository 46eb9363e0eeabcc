"""Which traces a Tempo holds of a time window, by `store.search_windows`: its search returns ids of traces alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from stagetrace.store.base import Selection
from stagetrace.store.search_windows import Found, Search, Walker, Window
from stagetrace.store.tempo.client import RangeRefusedError

if TYPE_CHECKING:
    from stagetrace.store.tempo.client import TempoClient

DEPTH: Final = 1000
MAX_DEPTH: Final = 10_000
NOTHING_BEFORE: Final = "nothing before "
_SECOND_NS: Final = 10**9
_LATEST_NS: Final = (2**31 - 1) * _SECOND_NS  # Tempo reads a time as 32 bits of seconds, some versions with a sign
_DAY_NS: Final = 86_400 * _SECOND_NS
_PARTS: Final = 26  # of a time that is too wide for one search: of a week each, Tempo's own bound, half a year


@dataclass(frozen=True, kw_only=True)
class TempoSearch(Search):
    """A search by a TraceQL query."""

    query: str


class TempoWalker(Walker[TempoSearch]):
    """Searches one Tempo window by window, of whole seconds; `what` of a find is the selection of its window."""

    grain_ns = _SECOND_NS
    grain = "second"

    def __init__(self, client: TempoClient, depth: int = DEPTH, max_depth: int = MAX_DEPTH) -> None:
        """Search for `depth` traces at once, and for up to `max_depth` within one second."""
        super().__init__(client.url, depth, max_depth)
        self._client = client
        self._widest_ns: int | None = None  # that one search takes, once this Tempo has said so

    def windows(self, search: TempoSearch, depth: int | None = None) -> Iterator[list[Found]]:
        """Yield the traces of each window, those that end last first.

        A trace is in each window in which a part of it is.
        """
        since_ns, until_ns = search.selection.since_ns, search.selection.until_ns
        bounded = replace(search.selection, since_ns=max(since_ns, _SECOND_NS), until_ns=min(until_ns, _LATEST_NS))
        search = replace(search, selection=bounded)
        if self._widest_ns is None:
            try:
                yield from super().windows(search, depth)  # its first search is the widest
            except RangeRefusedError as error:
                self._widest_ns = error.widest_s * _SECOND_NS
            else:
                return
        yield from self._in_parts(search, depth, max(self._widest_ns - 2 * _SECOND_NS, _SECOND_NS))

    def _in_parts(self, search: TempoSearch, depth: int | None, widest_ns: int) -> Iterator[list[Found]]:
        since_ns = search.selection.since_ns
        until_ns = min(search.selection.until_ns, max(time.time_ns() + _DAY_NS, since_ns + widest_ns))
        for _ in range(_PARTS):
            if until_ns <= since_ns:
                return
            low_ns = max(since_ns, until_ns - widest_ns)
            part = replace(search.selection, since_ns=low_ns, until_ns=until_ns)
            yield from super().windows(replace(search, selection=part), depth)
            until_ns = low_ns
        if until_ns > since_ns:
            day = f"{datetime.fromtimestamp(until_ns // _SECOND_NS, timezone.utc):%Y-%m-%d}"
            wide = f"{widest_ns / _DAY_NS:.0f} days" if widest_ns > _DAY_NS else f"{widest_ns // _SECOND_NS} s"
            search.cuts.append(f"{NOTHING_BEFORE}{day} was searched, as this Tempo searches {wide} at once")

    def read(self, search: TempoSearch, within: Selection, window: tuple[int, int], depth: int) -> Window:
        """Search once."""
        hits = self._client.search(search.query, window, depth)
        last = within.until_ns - 1
        found = [Found(-min(max(hit.end_ns, within.since_ns), last), hit.trace_id, "", within) for hit in hits]
        return Window(found, len(found), depth)
