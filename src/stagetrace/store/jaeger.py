"""Breaches and traces out of Jaeger, by the one API that all its versions from 2.13 on share.

Jaeger's search has no paging and never says that it cut an answer off: it gives at most `search_depth` traces. So
a time window whose answer is full is halved and asked again, newer half first, until every answer has room to spare.
"""

from __future__ import annotations

import heapq
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.errors import StoreError
from stagetrace.store.base import Breaches, Entry, Trace
from stagetrace.store.entries import breached_entries
from stagetrace.store.jaeger_client import DepthRefusedError, JaegerClient
from stagetrace.store.rows import by_trace, distinct, row, spans_of
from stagetrace.store.url import host_and_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

DEFAULT_PORT: Final = 16685
# Traces asked for at once. Whole traces come back, so this bounds an answer; storages clamp silently from 10,000 on.
DEPTH: Final = 1000
# Never more: Jaeger's badger storage allocates room for as many as are asked for, and 2**31 - 1 kills it.
MAX_DEPTH: Final = 10_000
_NS_PER_US: Final = 1000


class _Window(NamedTuple):
    """Answer for one window: its entries, how many traces came and how many could have come."""

    entries: list[Entry]
    traces: int
    depth: int

    @property
    def full(self) -> bool:
        return self.traces >= self.depth


def open_url(url: str) -> JaegerReader:
    """Return a reader of `jaeger://HOST[:PORT]`."""
    return JaegerReader(JaegerClient(*host_and_port(url, DEFAULT_PORT)))


class JaegerReader:
    """Reader of one Jaeger. Not for use by several threads at once."""

    def __init__(self, client: JaegerClient, depth: int = DEPTH, max_depth: int = MAX_DEPTH) -> None:
        """Ask for `depth` traces at once, and for up to `max_depth` where a window cannot be halved any more."""
        self._client = client
        self._depth = depth
        self._max_depth = max_depth
        self._refused = False  # whether the store itself set _max_depth, by refusing more

    def services(self) -> tuple[str, ...]:
        """Return the services that Jaeger knows, sorted."""
        return tuple(sorted(self._client.services()))

    def breaches(self, since_ns: int, until_ns: int, service: str | None = None, limit: int | None = None) -> Breaches:
        """Return breached entry spans as `Reader.breaches` says."""
        cuts: list[str] = []
        names = self.services() if service is None else (service,)
        # One more than the limit tells whether there are more; to ask for many more at once would only cost time.
        depth = self._depth if limit is None else limit + 1
        walks = [self._walk(name, (since_ns, until_ns), depth, cuts) for name in names]
        found = list(islice(heapq.merge(*walks, key=_newest_first), None if limit is None else limit + 1))
        if service is not None and not found:
            self._check_known(service)
        if limit is not None and len(found) > limit:
            cuts.insert(0, f"limit {limit} reached, there are older breaches")
            found = found[:limit]
        return Breaches(tuple(found), complete=not cuts, reason="; ".join(cuts) or None)

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` says."""
        spans = [row(*span) for part in self._client.get_trace(trace_id) for span in spans_of(part)]
        if not spans:
            raise StoreError(
                f"{self._client.url}: there is no trace {trace_id}\n"
                "it may still be on its way (spans are sent in batches), or have been sampled out or deleted by age"
            )
        return Trace(trace_id, tuple(distinct(spans)))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def _check_known(self, service: str) -> None:
        """Raise StoreError if Jaeger does not know `service`: an empty answer would then look like good news."""
        known = self.services()
        if service not in known:
            has = f"it holds {', '.join(known)}" if known else "it holds no spans of any service yet"
            raise StoreError(f"{self._client.url}: there is no service {service!r}\n{has}")

    def _walk(self, service: str, bounds_ns: tuple[int, int], depth: int, cuts: list[str]) -> Iterator[Entry]:
        """Yield entries of one service, newest first; append to `cuts` what could not be read in full.

        Windows have whole microseconds as ends, since some storages keep no finer index, and share no entry.
        """
        since_ns, until_ns = bounds_ns
        pending = [(since_ns // _NS_PER_US, -(-until_ns // _NS_PER_US))] if since_ns < until_ns else []
        while pending:
            low, high = pending.pop()
            window = self._ask(service, (low, high), bounds_ns, depth)
            if window.full and high - low > 1:
                middle = (low + high) // 2
                pending += [(low, middle), (middle, high)]
                continue
            if window.full:
                window = self._ask_deeper(service, (low, high), bounds_ns, window)
            if window.full:
                cuts.append(f"more than {window.depth} traces of {service} in the microsecond from {_utc(low)}")
            yield from sorted(window.entries, key=_newest_first)

    def _ask(self, service: str, window_us: tuple[int, int], bounds_ns: tuple[int, int], depth: int) -> _Window:
        """Return the answer for one window at `depth`, or at the greatest usual depth that the store accepts."""
        depth = min(depth, self._depth)
        try:
            return self._read(service, window_us, bounds_ns, depth)
        except DepthRefusedError as error:
            if depth == 1:
                raise StoreError(f"{self._client.url}: refuses every search ({error})\nits log says more") from None
            self._refuse(depth)
            self._depth = depth // 2
        return self._ask(service, window_us, bounds_ns, depth)

    def _ask_deeper(
        self, service: str, window_us: tuple[int, int], bounds_ns: tuple[int, int], window: _Window
    ) -> _Window:
        """Return the answer for a full window at a depth where it is no longer full, or at the greatest possible."""
        while window.full and window.depth < self._max_depth:
            # A store that refused a depth has its limit somewhere between; halve towards it.
            depth = (
                (window.depth + self._max_depth + 1) // 2 if self._refused else min(2 * window.depth, self._max_depth)
            )
            try:
                window = self._read(service, window_us, bounds_ns, depth)
            except DepthRefusedError:
                self._refuse(depth)
        return window

    def _refuse(self, depth: int) -> None:
        self._max_depth = depth - 1
        self._refused = True

    def _read(self, service: str, window_us: tuple[int, int], bounds_ns: tuple[int, int], depth: int) -> _Window:
        """Ask once. Only entries are kept, so memory is bounded by `depth` entries and one trace."""
        since_ns = max(bounds_ns[0], window_us[0] * _NS_PER_US)
        until_ns = min(bounds_ns[1], window_us[1] * _NS_PER_US)
        entries: dict[tuple[str, str], Entry] = {}
        ids: set[bytes] = set()
        for trace_id, spans in by_trace(self._client.find_breaches(service, *window_us, depth)):
            ids.add(trace_id)
            for entry in breached_entries(spans, service, since_ns, until_ns):
                # Delivery is at least once: the same span may be stored twice.
                entries.setdefault((entry.trace_id, entry.span_id), entry)
        return _Window(list(entries.values()), len(ids), depth)


def _newest_first(entry: Entry) -> tuple[int, str, str]:
    return -entry.start_unix_nano, entry.trace_id, entry.span_id


def _utc(microseconds: int) -> str:
    """Return a time as people and `--since` write it."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"
