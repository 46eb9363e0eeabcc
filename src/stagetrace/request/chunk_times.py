"""The measures of a response in several chunks, in constant memory however long the stream is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.semconv import (
    HTTP_RESPONSE_BODY_SIZE,
    NETWORK_CHUNK_GAP_MAX_MS,
    NETWORK_CHUNK_GAP_P99_MS,
    NETWORK_CHUNKS,
    NETWORK_FIRST_BYTE_MS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stagetrace.sources.thread_cpu import Share

if TYPE_CHECKING:
    # One entry of a request: the name of its list, and the value appended.
    Noted = tuple[str, Any]
    LoopShares = Sequence[tuple[int, int, Share]]

MAX_NOTED = 100  # for one chunk
LONG_NS = 10_000_000  # shorter gaps get no readings
# Gaps are counted by their first six binary digits: a quantile of them is at most 3 % too long.
DIGITS = 6
QUANTILE = 0.99


class Stream:
    """Pieces of one response, each with the time at which it had been handed over. Only one task sends them.

    The first chunk's time and the gaps after it add up to the time of the last chunk.
    """

    __slots__ = ("_gaps", "_noted", "_size_name", "count", "first", "last", "of_widest", "shares", "size", "widest")

    def __init__(self, size_name: str = HTTP_RESPONSE_BODY_SIZE) -> None:
        """Begin without a chunk; the attribute `size_name` will have the bytes of all, none where they are unknown."""
        self._size_name = size_name
        self.count = 0
        self.size = 0  # in bytes
        self.first = self.last = 0  # nanoseconds since the epoch
        self.widest = (0, 0)  # from when to when
        self._gaps: dict[int, int] = {}  # lower bound of the gap, in nanoseconds -> how many
        self._noted: list[Noted] = []  # by the request, since the last chunk
        self.of_widest: Sequence[Noted] = ()  # within that gap
        self.shares: dict[bool, tuple[int, int, LoopShares]] = {}  # until the first chunk (True), in that gap (False)

    def add(self, now: int, size: int) -> None:
        """Count one chunk, of `size` bytes, that had been handed over at `now`."""
        self.size += size
        self.count += 1
        if self.count == 1:
            self.first = now
        else:
            gap = now - self.last
            if gap > self.widest[1] - self.widest[0]:
                self.widest = (self.last, now)
                self.of_widest = self._noted
            shift = max(gap.bit_length() - DIGITS, 0)
            lower = max(gap, 0) >> shift << shift
            self._gaps[lower] = self._gaps.get(lower, 0) + 1
        self.last = max(now, self.last)  # the wall clock may step back
        self._noted = []

    def note(self, name: str, what: Any) -> None:
        """Keep an entry that the request notes, with the gap in which it lies: the request's own list may be full."""
        if len(self._noted) < MAX_NOTED:
            self._noted.append((name, what))

    def keep_shares(self, started: int, read: Callable[[int, int], LoopShares]) -> None:
        """Keep what the event loop's thread did before the last chunk: that is known only for a while.

        It is kept of the times that may be judged: until the first chunk, and the longest gap. `read` knows it.
        """
        is_first = self.count == 1
        times = (started, self.first) if is_first else self.widest
        if times[1] == self.last and times[1] - times[0] >= LONG_NS:
            self.shares[is_first] = (*times, read(*times))

    def loop_shares(self, start: int, end: int) -> LoopShares | None:
        """Return what the loop's thread has done from `start` to `end`; None where that is not kept."""
        return next((found for *times, found in self.shares.values() if times == [start, end]), None)

    @property
    def is_stream(self) -> bool:
        """Whether there was more than one chunk: else it was a response like any other."""
        return self.count > 1

    def cuts(self) -> tuple[int, ...]:
        """Return when the first chunk had been handed over, and the longest time between two began and ended."""
        return tuple(sorted({self.first, *self.widest} - {0}))

    def attributes(self, start: int) -> dict[str, Any]:
        """Return what the entry span carries; `start` is where it begins, in nanoseconds since the epoch."""
        if not self.is_stream:
            return {self._size_name: self.size} if self.size else {}
        return {
            **({self._size_name: self.size} if self._size_name else {}),
            NETWORK_CHUNKS: self.count,
            NETWORK_FIRST_BYTE_MS: max(self.first - start, 0) / 1e6,
            NETWORK_CHUNK_GAP_MAX_MS: (self.widest[1] - self.widest[0]) / 1e6,
            NETWORK_CHUNK_GAP_P99_MS: self.quantile_ns() / 1e6,
        }

    def quantile_ns(self) -> int:
        """Return the gap that QUANTILE of the gaps do not exceed, from above: never less than the true one."""
        wanted, seen = QUANTILE * (self.count - 1), 0
        for lower, count in sorted(self._gaps.items()):
            seen += count
            if seen >= wanted:
                width = 1 << max(lower.bit_length() - DIGITS, 0)
                return min(lower + width - 1, self.widest[1] - self.widest[0])
        return 0
