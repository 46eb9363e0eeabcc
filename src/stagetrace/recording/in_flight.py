"""The requests in flight, and the next moment at which one of them may be late.

A request passes here as it begins and as it ends, so both are an operation on a set and a comparison. The sampler
(`sla/stall_sampler.py`) waits for that moment in a thread of its own. While requests are in time the moment is moved on
before it comes, so nothing wakes up.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.guard import guarded
from stagetrace.real_threads import allocate_lock
from stagetrace.recording.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.recording.record import RequestRecord

NEVER: Final = 2**63 - 1  # nanoseconds


class Bounds(NamedTuple):
    """When a request is late: it began at `start`, is slow after `late` and a breach after `bound`; nanoseconds."""

    start: int
    late: int
    bound: int


class InFlight:
    """Requests that nobody has found late yet. Any thread may call any method; times in nanoseconds since the epoch."""

    def __init__(self) -> None:
        self.is_watched = False  # whether a sampler wants to know of late requests: else nothing is kept
        self.records: set[RequestRecord] = set()
        self.parts: dict[RequestRecord, int] = {}  # what is done for requests, by when those are late
        self.bounds_of: Callable[[RequestRecord], Bounds | None] = lambda _: None
        self.bound_ns = NEVER  # no request is late that has taken less
        self.due = NEVER  # when the sampler wants to look at a request that it has found late
        self.timer = Timer()
        self._setting = allocate_lock()  # guards the setting of the timer
        self._next_at = NEVER  # when it ends
        self._move_at = 0  # the first request that begins from then on sets it again
        self._on_moved: Callable[[], None] = lambda: None

    def watch(
        self, bound_ns: int, on_moved: Callable[[], None], bounds_of: Callable[[RequestRecord], Bounds | None]
    ) -> None:
        """Keep requests from now on; `on_moved` is called, in a request's thread, now and then: at their first one.

        `bounds_of` returns when a request is late, as far as that is known by now; None for never.
        """
        self.bound_ns, self._on_moved, self._move_at = bound_ns, on_moved, 0
        self.bounds_of = bounds_of
        self.is_watched = True

    def stop(self) -> None:
        """Keep none any more."""
        self.is_watched = False
        self.records.clear()
        self.parts.clear()

    def begin(self, record: RequestRecord) -> None:
        """Keep a request that begins."""
        self.records.add(record)
        if record.started >= self._move_at:
            self._move(record.started)

    def end(self, record: RequestRecord) -> None:
        """Let go of a request that has ended, if it is still kept."""
        self.records.discard(record)

    def begin_part(self, record: RequestRecord, late_at: int) -> None:
        """Keep what is done for a request that is late at a time that is known."""
        self.parts[record] = late_at
        if late_at < self._next_at or record.started >= self._move_at:
            self._move(record.started)

    def end_part(self, record: RequestRecord) -> None:
        """Let go of it, if it is still kept."""
        self.parts.pop(record, None)

    @guarded
    def _move(self, now: int) -> None:
        self._on_moved()
        self.set_timer(now)

    def set_timer(self, now: int) -> None:
        """Let the timer end at the next moment at which a request may be late, or the sampler wants to look."""
        with self._setting:
            next_at = min(self.due, min((one.started for one in self.records.copy()), default=NEVER) + self.bound_ns)
            self._next_at = next_at = min(next_at, *self.parts.copy().values(), NEVER)
            # One that begins from now on may be late before that; else, after a while, that moment may be a later one.
            self._move_at = 0 if next_at > now + self.bound_ns else now + self.bound_ns // 2
            if next_at >= NEVER:
                self.timer.clear()
            else:
                self.timer.set(max(next_at - time.time_ns(), 0))

    def take(self, now: int) -> list[RequestRecord]:
        """Return the requests that may be late by now, and what is done for such; keep them no longer."""
        self._next_at = NEVER
        latest = now - self.bound_ns
        taken = [one for one in self.records.copy() if one.started <= latest]
        for one in taken:
            self.records.discard(one)
        parts = [one for one, late_at in self.parts.copy().items() if late_at <= now]
        for one in parts:
            self.parts.pop(one, None)
        return taken + parts

    def begin_anew(self) -> None:
        """Forget the parent's requests, in a forked child."""
        self.records, self.parts = set(), {}
        self.due, self._next_at, self._move_at = NEVER, NEVER, 0
        self._setting, self.timer = allocate_lock(), Timer()


in_flight: Final = InFlight()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_flight.begin_anew)
