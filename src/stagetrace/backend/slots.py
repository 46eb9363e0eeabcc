"""A limit of calls that may wait for their clients: where others need a slot, the slowest client loses its own.

`grpc.aio` costs 0.6 ms of CPU more a request, cannot cancel a call from the server's side, and leaks memory for each
call that a client cancels (grpc issue 43360). A limit for each peer would stop the legal ones behind a proxy or NAT.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from stagetrace.backend.refusal import ABANDONED, BUSY, SLOW, Refused

if TYPE_CHECKING:
    import grpc

_LONGEST_WAIT_S: Final = 10.0  # for a slot
_LONG_S: Final = 3600.0


class Slot:
    """The slot of one call. `lost` is set when the call loses it; the call is then cancelled."""

    def __init__(self, slots: Slots, context: grpc.ServicerContext) -> None:
        self._slots = slots
        self.context = context
        self.lost: Refused | None = None
        self.waits_since: float | None = None
        self.waits_until = 0.0

    @contextmanager
    def client(self, within_s: float) -> Iterator[None]:
        """Mark a block that waits for the client: the slot is lost after `within_s`, or when another call needs it.

        Raise Refused at the end of the block where it was.
        """
        self._slots.begin_wait(self, within_s)
        try:
            yield
        finally:
            self._slots.end_wait(self)
        if self.lost is not None:
            raise self.lost


class _Waiter:
    def __init__(self, peer: str, number: int) -> None:
        self.peer = peer
        self.number = number
        self.turn = threading.Event()
        self.refused: Refused | None = None


class Slots:
    """`count` calls at one time; up to `most_waiting` wait.

    First come the calls of connections that have few: by connection and not by address, since on one machine all
    clients have the same.
    `_lock` guards everything; a thread ends calls whose clients are too slow.
    """

    def __init__(self, count: int, most_waiting: int, patience_s: float = _LONGEST_WAIT_S) -> None:
        self.most = count + most_waiting
        self._count = count
        self._most_waiting = most_waiting
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._held: set[Slot] = set()
        self._granted = 0  # slots that are held, or given to a waiter that does not run yet
        self._waiting: list[_Waiter] = []
        self._number = 0
        self._calls: Counter[str] = Counter()  # of each connection, waiting or with a slot
        self._look = threading.Event()
        self._next_look = 0.0
        self._watch: threading.Thread | None = None

    @contextmanager
    def hold(self, context: grpc.ServicerContext) -> Iterator[Slot]:
        """Yield a slot when there is one. Raise Refused where too many calls wait, or this one waited too long."""
        peer = context.peer()
        self._turn(context, peer)
        slot = Slot(self, context)
        with self._lock:
            self._held.add(slot)
        try:
            yield slot
        finally:
            with self._lock:
                self._held.discard(slot)
                self._leave(peer)
                self._granted -= 1
                self._grant()

    def begin_wait(self, slot: Slot, within_s: float) -> None:
        """Note that a slot's client keeps it waiting from now on."""
        with self._lock:
            slot.waits_since = time.monotonic()
            slot.waits_until = slot.waits_since + within_s
            self._look_at(slot.waits_since + self._patience_s if self._waiting else slot.waits_until)

    def end_wait(self, slot: Slot) -> None:
        """Note that it does not any more."""
        with self._lock:
            slot.waits_since = None

    def _turn(self, context: grpc.ServicerContext, peer: str) -> None:
        """Return when the call has a slot. Raise Refused."""
        with self._lock:
            self._calls[peer] += 1
            if self._granted < self._count and not self._waiting:
                self._granted += 1
                return
            self._number += 1
            waiter = _Waiter(peer, self._number)
            self._waiting.append(waiter)
            if len(self._waiting) > self._most_waiting:
                self._refuse(max(self._waiting, key=self._order), _too_many())
            self._look_at(time.monotonic())
        disconnected = partial(self._give_up, waiter, Refused(ABANDONED, "the client disconnected"))
        if not context.add_callback(disconnected):
            disconnected()
        if not waiter.turn.wait(_LONGEST_WAIT_S):
            self._give_up(waiter, _too_many())
        if waiter.refused is not None:
            raise waiter.refused

    def _give_up(self, waiter: _Waiter, why: Refused) -> None:
        with self._lock:
            self._refuse(waiter, why)

    def _leave(self, peer: str) -> None:
        self._calls[peer] -= 1
        if not self._calls[peer]:
            del self._calls[peer]

    def _refuse(self, waiter: _Waiter, why: Refused) -> None:
        if waiter in self._waiting:  # otherwise it has its slot
            self._waiting.remove(waiter)
            self._leave(waiter.peer)
            waiter.refused = why
            waiter.turn.set()

    def _grant(self) -> None:
        while self._waiting and self._granted < self._count:
            first = min(self._waiting, key=self._order)
            self._waiting.remove(first)
            self._granted += 1
            first.turn.set()

    def _order(self, waiter: _Waiter) -> tuple[int, int]:
        return self._calls[waiter.peer], waiter.number

    def _look_at(self, moment: float) -> None:
        """Have the thread look for calls to end then, or before."""
        if self._watch is None:
            self._watch = threading.Thread(target=self._end_slow_calls, name="stagetrace-slots", daemon=True)
            self._watch.start()
        if moment < self._next_look:
            self._next_look = moment
            self._look.set()

    def _end_slow_calls(self) -> None:
        while True:
            with self._lock:
                lost = self._lost_now(time.monotonic())
                delay = self._next_look - time.monotonic()
            for slot in lost:
                slot.context.cancel()  # type: ignore[no-untyped-call]
            self._look.wait(max(0.0, delay))
            self._look.clear()

    def _lost_now(self, now: float) -> list[Slot]:
        """Mark the slots that are lost now and return them; set the time of the next look."""
        self._next_look = now + _LONG_S
        slow = [
            (slot.waits_since + self._patience_s, id(slot), slot)
            for slot in self._held
            if slot.waits_since is not None and slot.lost is None
        ]
        needed = len(self._waiting) - sum(slot.lost is not None for slot in self._held)
        lost = []
        for number, (patient_until, _, slot) in enumerate(sorted(slow)):
            until = min(slot.waits_until, patient_until) if number < needed else slot.waits_until
            if until <= now:
                is_late = slot.waits_until <= now
                slot.lost = Refused(SLOW, "the client took too long") if is_late else Refused(BUSY, _TAKEN)
                lost.append(slot)
            else:
                self._next_look = min(self._next_look, until)
        return lost


_TAKEN: Final = "others wait and this client is slow; send this request again"


def _too_many() -> Refused:
    return Refused(BUSY, "too many requests at this moment; send this one again")
