"""Everything that a store holds of a time window, although its search silently returns a limited number of traces.

Such a search has no paging and no sign of truncation: it returns at most as many traces as were asked for, its depth.
So a time window whose result is full is cut in two and searched again, newer part first, until no result is full.
The cut goes through the median of the traces found, not of the time: a window's traffic may lie in its last seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeAlias, TypeVar

from stagetrace.errors import StoreError
from stagetrace.store.base import Progress, Selection
from stagetrace.store.entries import breached_entries, matches

if TYPE_CHECKING:
    from stagetrace.store.rows import ServiceSpan

_FILLED: Final = 0.7  # share of the depth that a search aims at
_WIDENING: Final = 8  # at most, from one window to the next


class DepthRefusedError(Exception):
    """The store does not accept this search depth."""


class Found(NamedTuple):
    """One thing found in a trace. Newest first is ascending order; the first three name it, and it is found once."""

    minus_start: int
    trace_id: str
    span_id: str
    what: object


@dataclass(frozen=True)
class Search:
    """A search of a selection: `of` names in messages what else it is limited to; `cuts` collects what was cut off.

    It ends once `most` traces were read, and `cuts` reports it.
    """

    selection: Selection
    cuts: list[str]
    of: str = ""
    most: int | None = None


S = TypeVar("S", bound=Search)


class _Range(NamedTuple):
    """A time window [low, high) in grains; `halve`: cut it in the middle of the time, whatever it holds."""

    low: int
    high: int
    halve: bool = False

    def cut(self, found: list[Found], grain_ns: int) -> tuple[_Range, _Range]:
        """Return both parts, neither empty, of which each is to hold half of what was found."""
        middle, halve = (self.low + self.high) // 2, False
        if found and not self.halve:
            median = -sorted(one.minus_start for one in found)[len(found) // 2] // grain_ns
            # At an end it would cut off next to nothing, again and again.
            middle = median if self.low < median < self.high else middle
            # A whole trace is found by its newest span in the window, so a long one is near each new end of it.
            halve = not found[0].span_id
        return _Range(self.low, middle, halve), _Range(middle, self.high, halve)


class Window(NamedTuple):
    """The result for one window: the finds, how many traces were returned and how many could have been."""

    found: list[Found]
    traces: int
    depth: int

    @property
    def full(self) -> bool:
        """Return whether there may be more traces."""
        return self.traces >= self.depth


class Walker(ABC, Generic[S]):
    """Searches one store window by window; remembers the depth that this store accepts."""

    grain_ns: int  # the finest time that a search of the store takes
    grain: str

    def __init__(self, name: str, depth: int, max_depth: int) -> None:
        """Search for `depth` traces at once, and for up to `max_depth` where a window cannot be halved any more."""
        self._name = name
        self._depth = depth
        self._max_depth = max_depth
        self._refused = False  # whether the store itself set _max_depth, by refusing more

    @abstractmethod
    def read(self, search: S, within: Selection, window: tuple[int, int], depth: int) -> Window:
        """Search one window, in grains, of which `within` is the selection. Raise DepthRefusedError."""

    def windows(self, search: S, depth: int | None = None) -> Iterator[list[Found]]:
        """Yield the finds of each window, newest first, searching for at most `depth` traces at once.

        Windows have whole grains as ends, and share nothing found.
        """
        since_ns, until_ns = search.selection.since_ns, search.selection.until_ns
        depth = self._depth if depth is None else depth
        pending = [_Range(since_ns // self.grain_ns, -(-until_ns // self.grain_ns))] if since_ns < until_ns else []
        read = 0
        width = None  # of the widest window whose result is expected not to be full
        while pending:
            at = pending.pop()
            if width is not None and width < at.high - at.low:
                pending.append(at._replace(high=at.high - width))
                at = at._replace(low=at.high - width)
            low, high = at[:2]
            window = self._ask(search, (low, high), depth)
            read += window.traces
            if search.most is not None and read >= search.most and (pending or window.full):
                pending = []
                search.cuts.append(f"only {read} traces{search.of}")
                yield _newest_first(window.found)
                continue
            if window.full and high - low > 1:
                pending += at.cut(window.found, self.grain_ns)
                continue
            if pending:  # it was cut: the next window may be cut alike, which saves a search in vain
                width = _wider(high - low, window)
            if window.full:
                window = self._ask_deeper(search, (low, high), window)
            if window.full:
                where = f"{search.of} in the {self.grain} from {_utc(low * self.grain_ns)}"
                search.cuts.append(f"more than {window.depth} traces{where}")
            yield _newest_first(window.found)

    def _ask(self, search: S, window: tuple[int, int], depth: int) -> Window:
        """Return the result for one window at `depth`, or at the greatest depth that the store accepts."""
        depth = min(depth, self._depth)
        try:
            return self._read(search, window, depth)
        except DepthRefusedError as error:
            if depth == 1:
                raise StoreError(f"{self._name}: refuses every search ({error})\nsee its log") from None
            self._refuse(depth)
            self._depth = depth // 2
        return self._ask(search, window, depth)

    def _ask_deeper(self, search: S, at: tuple[int, int], window: Window) -> Window:
        """Return the result for a full window at a depth where it is no longer full, or at the greatest possible."""
        while window.full and window.depth < self._max_depth:
            # A store that refused a depth has its limit somewhere between; halve towards it.
            depth = (
                (window.depth + self._max_depth + 1) // 2 if self._refused else min(2 * window.depth, self._max_depth)
            )
            try:
                window = self._read(search, at, depth)
            except DepthRefusedError:
                self._refuse(depth)
        return window

    def _refuse(self, depth: int) -> None:
        self._max_depth = depth - 1
        self._refused = True

    def _read(self, search: S, window: tuple[int, int], depth: int) -> Window:
        since_ns = max(search.selection.since_ns, window[0] * self.grain_ns)
        until_ns = min(search.selection.until_ns, window[1] * self.grain_ns)
        return self.read(search, replace(search.selection, since_ns=since_ns, until_ns=until_ns), window, depth)


def _newest_first(found: list[Found]) -> list[Found]:
    return sorted(found, key=lambda one: one[:3])


def _wider(width: int, window: Window) -> int | None:
    """Return the width of a window that would nearly fill a result if traffic were as in this one.

    None where this has none: then the rest may be as empty.
    """
    if not window.traces:
        return None
    return max(1, min(width * _WIDENING, int(width * _FILLED * window.depth / window.traces)))


def _utc(nanoseconds: int) -> str:
    """Return a time in the form of `--since`."""
    seconds, rest = divmod(nanoseconds // 1000, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


# --- What is found in one trace.

Pick: TypeAlias = "Callable[[list[ServiceSpan], Selection], Iterator[Found]]"


def whole(trace: list[ServiceSpan], selection: Selection) -> Iterator[Found]:
    """Yield a trace by its newest span that started in the window, of the selected service if there is one."""
    starts = (one.span.start_time_unix_nano for one in trace if selection.service in (None, one.service))
    newest = max((start for start in starts if selection.since_ns <= start < selection.until_ns), default=None)
    if newest is not None:
        yield Found(-newest, trace[0].span.trace_id.hex(), "", trace)


def whole_of_requests(trace: list[ServiceSpan], selection: Selection) -> Iterator[Found]:
    """Yield a trace for each selected entry span that it has."""
    return (one._replace(what=trace) for one in requests(trace, selection))


def requests(trace: list[ServiceSpan], selection: Selection) -> Iterator[Found]:
    """Yield the selected entry spans of one trace, as rows."""
    for one in trace:
        if one.span.kind == one.span.SPAN_KIND_SERVER:
            entry = one.row()
            if matches(entry, selection):
                yield Found(-entry.start_unix_nano, entry.trace_id, entry.span_id, entry)


def breaches(trace: list[ServiceSpan], selection: Selection) -> Iterator[Found]:
    """Yield the breached entries of one trace."""
    for entry in breached_entries(trace, selection):
        yield Found(-entry.start_unix_nano, entry.trace_id, entry.span_id, entry)


def with_progress(found: Iterator[Found], since_ns: int, progress: Progress) -> Iterator[Found]:
    """Yield the finds; the progress is the share of the selected time, if that has a beginning."""
    newest_ns = None
    for count, one in enumerate(found, 1):
        start_ns = -one.minus_start
        newest_ns = start_ns if newest_ns is None else newest_ns
        whole_ns = newest_ns - since_ns
        progress(count, "traces", (newest_ns - start_ns) / whole_ns if since_ns > 0 and whole_ns else None)
        yield one
