"""Everything that Jaeger holds of a time window, although its search silently returns a limited number of traces.

Jaeger's search has no paging and no sign of truncation: it returns at most `search_depth` traces. So
a time window whose result is full is cut in two and queried again, newer part first, until no result is full.
The cut goes through the median of the traces found, not of the time: a window's traffic may lie in its last seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Final, NamedTuple

from stagetrace.errors import StoreError
from stagetrace.store.base import Selection
from stagetrace.store.jaeger.client import DepthRefusedError, JaegerClient

# Traces of one search. Whole traces are returned, so this bounds a result; storages clamp silently from 10,000 on.
DEPTH: Final = 1000
# Never more: Jaeger's badger storage allocates room for that many, and 2**31 - 1 kills it.
MAX_DEPTH: Final = 10_000
_NS_PER_US: Final = 1000
_FILLED: Final = 0.7  # share of the depth that a search aims at
_WIDENING: Final = 8  # at most, from one window to the next


class Found(NamedTuple):
    """One thing found in a trace. Newest first is ascending order; the first three name it, and it is found once."""

    minus_start: int
    trace_id: str
    span_id: str
    what: object


class Picked(NamedTuple):
    """The finds in one result, each once, and its number of traces."""

    found: list[Found]
    traces: int


class Search(NamedTuple):
    """A search: traces with a span of `service` that has all `attributes`; `cuts` collects what was cut off.

    `pick` returns the finds of a result for a selection: `selection` with a narrowed window. The search ends once
    `most` traces were read, and `cuts` reports it.
    """

    service: str
    attributes: Mapping[str, str]
    selection: Selection
    pick: Callable[[Iterator[bytes], Selection], Picked]
    cuts: list[str]
    most: int | None = None


class _Range(NamedTuple):
    """A time window [low, high) in microseconds; `halve`: cut it in the middle of the time, whatever it holds."""

    low: int
    high: int
    halve: bool = False

    def cut(self, found: list[Found]) -> tuple[_Range, _Range]:
        """Return both parts, neither empty, of which each is to hold half of what was found."""
        middle, halve = (self.low + self.high) // 2, False
        if found and not self.halve:
            median = -sorted(one.minus_start for one in found)[len(found) // 2] // _NS_PER_US
            # At an end it would cut off next to nothing, again and again.
            middle = median if self.low < median < self.high else middle
            # A whole trace is found by its newest span in the window, so a long one is near each new end of it.
            halve = not found[0].span_id
        return _Range(self.low, middle, halve), _Range(middle, self.high, halve)


class _Window(NamedTuple):
    """The result for one window: the finds, how many traces were returned and how many could have been."""

    found: list[Found]
    traces: int
    depth: int

    @property
    def full(self) -> bool:
        return self.traces >= self.depth


class JaegerWalker:
    """Searches one Jaeger window by window; remembers the depth that this Jaeger accepts."""

    def __init__(self, client: JaegerClient, depth: int = DEPTH, max_depth: int = MAX_DEPTH) -> None:
        """Search for `depth` traces at once, and for up to `max_depth` where a window cannot be halved any more."""
        self._client = client
        self._depth = depth
        self._max_depth = max_depth
        self._refused = False  # whether the store itself set _max_depth, by refusing more

    def walk(self, search: Search, depth: int | None = None) -> Iterator[Found]:
        """Yield the finds, newest first, searching for at most `depth` traces at once.

        Windows have whole microseconds as ends, since some storages keep no finer index, and share nothing found.
        """
        since_ns, until_ns = search.selection.since_ns, search.selection.until_ns
        depth = self._depth if depth is None else depth
        pending = [_Range(since_ns // _NS_PER_US, -(-until_ns // _NS_PER_US))] if since_ns < until_ns else []
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
                search.cuts.append(f"only {read} traces of {search.service}")
                yield from sorted(window.found, key=lambda one: one[:3])
                continue
            if window.full and high - low > 1:
                pending += at.cut(window.found)
                continue
            if pending:  # it was cut: the next window may be cut alike, which saves a search in vain
                width = _wider(high - low, window)
            if window.full:
                window = self._ask_deeper(search, (low, high), window)
            if window.full:
                where = f"of {search.service} in the microsecond from {_utc(low)}"
                search.cuts.append(f"more than {window.depth} traces {where}")
            yield from sorted(window.found, key=lambda one: one[:3])

    def _ask(self, search: Search, window_us: tuple[int, int], depth: int) -> _Window:
        """Return the result for one window at `depth`, or at the greatest depth that the store accepts."""
        depth = min(depth, self._depth)
        try:
            return self._read(search, window_us, depth)
        except DepthRefusedError as error:
            if depth == 1:
                raise StoreError(f"{self._client.url}: refuses every search ({error})\nsee its log") from None
            self._refuse(depth)
            self._depth = depth // 2
        return self._ask(search, window_us, depth)

    def _ask_deeper(self, search: Search, window_us: tuple[int, int], window: _Window) -> _Window:
        """Return the result for a full window at a depth where it is no longer full, or at the greatest possible."""
        while window.full and window.depth < self._max_depth:
            # A store that refused a depth has its limit somewhere between; halve towards it.
            depth = (
                (window.depth + self._max_depth + 1) // 2 if self._refused else min(2 * window.depth, self._max_depth)
            )
            try:
                window = self._read(search, window_us, depth)
            except DepthRefusedError:
                self._refuse(depth)
        return window

    def _refuse(self, depth: int) -> None:
        self._max_depth = depth - 1
        self._refused = True

    def _read(self, search: Search, window_us: tuple[int, int], depth: int) -> _Window:
        """Search once. Memory is bounded by the finds that `pick` keeps of `depth` traces."""
        since_ns = max(search.selection.since_ns, window_us[0] * _NS_PER_US)
        until_ns = min(search.selection.until_ns, window_us[1] * _NS_PER_US)
        within = replace(search.selection, since_ns=since_ns, until_ns=until_ns)
        result = self._client.find(search.service, search.attributes, window_us, depth)
        return _Window(*search.pick(result, within), depth)


def _wider(width: int, window: _Window) -> int | None:
    """Return the width of a window that would nearly fill a result if traffic were as in this one.

    None where this has none: then the rest may be as empty.
    """
    if not window.traces:
        return None
    return max(1, min(width * _WIDENING, int(width * _FILLED * window.depth / window.traces)))


def _utc(microseconds: int) -> str:
    """Return a time in the form of `--since`."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"
