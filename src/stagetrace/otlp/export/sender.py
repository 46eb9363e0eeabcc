"""The threads behind the queue: one sends; with a spool, a second one puts on disk what cannot be sent."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.guard import guarded, report
from stagetrace.otlp.export.delivery_log import DeliveryLog
from stagetrace.otlp.export.response import STUCK_AFTER, Trouble
from stagetrace.system.queues import Empty, SimpleQueue
from stagetrace.system.sigterm import catch_again
from stagetrace.system.threads import Condition, allocate_lock, start, yield_interpreter

if TYPE_CHECKING:
    from pathlib import Path

    from stagetrace.otlp.export.client import ExportClient
    from stagetrace.otlp.export.queue import Batch, SpanQueue
    from stagetrace.otlp.export.response import Outcome
    from stagetrace.otlp.export.spool import Spool

SHUTDOWN_BOUND_S: Final = 4.5  # below the bound of runtime.shutdown, so that losses can still be logged
FLUSH_PATIENCE_S: Final = 3.0  # with a spool: what was not delivered by then goes there
LONGEST_BACKOFF_S: Final = 10.0
_SHORTEST_WAIT_S: Final = 0.05
_SPOOL_EVERY_S: Final = 0.5
ENOUGH_SPANS: Final = 1_024  # gRPC holds the GIL for 0.4 ms as it takes so many, twice as long for twice as many
_OFTEN_S: Final = 0.1  # instead of sending more often than that, more is sent at once
_HURRIED_DELAY_S: Final = 0.05
_SPOOL_AGAIN_AFTER_S: Final = 10.0  # after which a full disk is tried again
_NEVER: Final = float("inf")


class Sender:
    """Sends what is queued, breaches first, and counts what became of it.

    While the receiver is away (`_down`), one batch at a time is tried, ever less often. With a spool all else goes
    there at once; without one it stays queued, and the queue drops the oldest good spans when it is full.
    """

    def __init__(
        self, queue: SpanQueue, client: ExportClient, spool: Spool | None, *, batch: int, delay_s: float
    ) -> None:
        self._queue = queue
        self._client = client
        self._spool = spool
        self._batch = batch
        self._delay_s = delay_s
        self._wakes: SimpleQueue[None] = SimpleQueue()  # its `put` may be interrupted by itself; a lock's may not
        self._spooler_wakes: SimpleQueue[None] = SimpleQueue()
        self.woken = False
        self._rounding = allocate_lock()  # held for a round, which a flush makes where no thread is known to run
        # Set by the threads, too: a signal's handler may raise out of their start when they run already.
        self._running = self._spooler_runs = False
        # Guards the counts, what is in hand and the flush; never taken by a thread of the service.
        self._state = Condition()
        self._counts = dict.fromkeys(("delivered", "rejected", "refused", "lost", "spooled", "spool_full"), 0)
        self._busy = False
        self._in_flight: Batch | None = None
        self._early: Path | None = None  # the batch in flight, as a flush that could not wait for it put it on disk
        self._in_hand = 0  # spans on their way from the queue, or from a failure, to the spool
        self._flushes = 0
        self._urgent = False  # a flush has waited long enough: all is to go to the spool
        self._gave_up = False  # a flush waited in vain, and nothing was delivered since
        self._ended = False
        self.trouble: Trouble | None = None  # written by the sending thread alone
        # Of the sending thread alone.
        self._down = False
        self._trying = False
        self._failures = 0
        self._try_at = 0.0
        self._asked_to_wait = False
        self._failed: bytes | None = None  # the first item of the batch that failed last, and how often in a row
        self._fails = 0
        self._turn_of_others = False
        self._next_at = 0.0
        self._again_at = 0.0  # until then a batch is to be full
        self._replay_at = 0.0 if spool is not None else _NEVER
        self._replay = None if spool is None else spool.replay(self._try)
        self._spool_at = 0.0
        self.log = DeliveryLog(client.target, self.counts, spool.folder if spool is not None else None)

    def start(self) -> None:
        """Start the threads."""
        start(self._run, "stagetrace-export")
        self._running = True
        if self._spool is not None:
            start(self._run_spooler, "stagetrace-spool")
            self._spooler_runs = True

    def wake(self) -> None:
        """Let the sending thread look at the queue."""
        self.woken = True
        self._wakes.put(None)

    def deliver_immediately(self) -> None:
        """Wait no longer for a batch to fill than it takes to do something else."""
        self._delay_s = min(self._delay_s, _HURRIED_DELAY_S)
        self._next_at = 0.0
        self.wake()

    def counts(self) -> dict[str, int]:
        """Return in spans what became of those that were received; all others but the last two add up to `received`.

        `from_spool` were delivered and `refused_from_spool` refused later, out of a spool, whichever process spooled.
        """
        queue = self._queue
        with self._state:
            queue.sort_in()
            counts = {
                "received": queue.received,
                "waiting": queue.spans,
                "in_hand": self._in_hand + self._unsafe_in_flight(),
                "dropped": queue.dropped,
                "dropped_breaches": queue.dropped_breaches,
            }
            counts |= self._counts
        from_spool, refused = (self._replay.delivered, self._replay.refused) if self._replay is not None else (0, 0)
        return counts | {"from_spool": from_spool, "refused_from_spool": refused}

    def _unsafe_in_flight(self) -> int:
        return self._in_flight.spans if self._in_flight is not None and self._early is None else 0

    def add_lost(self) -> None:
        """Count a span that could not be encoded as received, and as lost."""
        with self._state:
            self._queue.received += 1
            self._counts["lost"] += 1

    # The sending thread.

    def _run(self) -> None:
        self._running = True
        while not self._ended:
            catch_again()
            self._pause()
            self._round_safely()
        if self._spool is not None:
            guarded(self._spool.release)()

    def _pause(self) -> None:
        """Wait until a batch is complete, a flush is asked for or the delay has passed."""
        self._next_at = time.monotonic() + self._delay_s
        while not self._ended and (left := self._left_s()) > 0:
            with suppress(Empty):
                self._wakes.get(timeout=left)
            self.woken = False
            self._queue.sort_in()

    def _left_s(self) -> float:
        now = time.monotonic()
        if now < self._try_at:
            return self._try_at - now
        if (self._flushes or self._down) and not self._queue.empty():
            return 0.0
        again_at = self._again_at if now < self._again_at else _NEVER
        if self._queue.holds(min(ENOUGH_SPANS, self._batch) if again_at == _NEVER else self._batch):
            return 0.0
        return min(self._next_at, self._replay_at, again_at) - now

    def _round_safely(self) -> None:
        with self._rounding:
            try:
                self._round()
            except Exception as error:  # noqa: BLE001 -- the thread must go on
                report("stagetrace.otlp.export.sender", error)
                self._try_at = time.monotonic() + self._delay_s
            with self._state:
                self._busy = False
                self._state.notify_all()

    def _round(self) -> None:
        """Send what waits now, then one batch out of the spool."""
        self._again_at = time.monotonic() + _OFTEN_S
        self._queue.sort_in()
        goal = self._queue.spans
        yield_interpreter()
        while goal > 0 and not self._ended:
            with self._state:
                self._busy = True
                batch = self._in_flight = self._queue.take(self._batch, good_first=self._turn_of_others)
            self._turn_of_others = False
            if batch is None:
                break
            goal -= batch.spans
            if not self._deliver(batch):
                return
        self.log.dropped(self._queue.dropped + self._queue.dropped_breaches)
        with self._state:
            self._busy = False  # a flush does not wait for the spool, where all is safe
            self._state.notify_all()
        self._replay_next()

    def _deliver(self, batch: Batch) -> bool:
        """Send one batch; return whether to go on with the next."""
        try:
            yield_interpreter()
            request = self._queue.request(batch)
            yield_interpreter()
            outcome = self._send(request)
        except BaseException:
            with self._state:
                self._in_flight = None
                self._counts["refused"] += batch.spans
            raise
        with self._state:
            early, self._early, self._in_flight = self._early, None, None
            if early is not None and not outcome.retryable and self._remove(early):
                self._counts["spooled"] -= batch.spans
                early = None
            if early is None:
                self._count(batch, outcome)
        self._note(outcome)
        if outcome.retryable and early is None:
            self._turn_of_others = self._is_stuck(batch.items[0])
            self._store_for_later(batch, behind=self._turn_of_others)
        return not outcome.retryable

    def _is_stuck(self, item: bytes) -> bool:
        """Return whether the batch with this has failed so often that it may be its own fault."""
        self._fails = self._fails + 1 if item == self._failed else 1
        self._failed = item
        if self._fails < STUCK_AFTER:
            return False
        self._failed, self._fails = None, 0
        return True

    def _send(self, request: bytes) -> Outcome:
        self._trying = True
        try:
            outcome = self._client.send(request)
        finally:
            self._trying = False
        if outcome.misdirected and self._spool is not None:  # it stays there for better settings, tried now and then
            return outcome._replace(retryable=True)
        return outcome

    def _count(self, batch: Batch, outcome: Outcome) -> None:
        if outcome.retryable:
            self._in_hand += batch.spans
        elif outcome.delivered:
            rejected = min(outcome.rejected, batch.spans)
            self._counts["rejected"] += rejected
            self._counts["delivered"] += batch.spans - rejected
        else:
            self._counts["refused"] += batch.spans

    def _store_for_later(self, batch: Batch, *, behind: bool = False) -> None:
        """Put a batch in hand into the spool, or back into the queue."""
        if not self._to_spool(batch):
            self._queue.put_back(batch, behind=behind)
        with self._state:
            self._in_hand -= batch.spans
            self._state.notify_all()

    def _note(self, outcome: Outcome) -> None:
        """Decide from an outcome what to do next, and report it."""
        target = self._client.target
        since = self.trouble.since if self.trouble is not None else time.time()
        good = outcome.delivered and not outcome.rejected
        reason = outcome.reason or "no reason given"
        self.trouble = None if good else Trouble(reason, since)
        if outcome.retryable:
            self._failures += 1
            backoff = min(2.0 ** (self._failures - 1), LONGEST_BACKOFF_S) * random.uniform(0.8, 1.2)  # noqa: S311
            self._try_at = time.monotonic() + (max(outcome.wait_s, _SHORTEST_WAIT_S) if outcome.wait_s else backoff)
            self._asked_to_wait = outcome.wait_s > 0
            self._down = True
            if self._spool is not None:
                self._replay_at = 0.0  # the next try, if nothing else waits by then
                self._spooler_wakes.put(None)
            self.log.problem(f"cannot deliver spans to {target} ({reason})", outcome.remedy)
            return
        if outcome.delivered:
            self._gave_up = False
            if self._down:
                self._recovered()
        else:
            self.log.problem(f"cannot deliver spans to {target} ({reason})", outcome.remedy)
        if outcome.rejected:
            self.log.problem(f"{target} rejected spans of an otherwise good batch ({reason})", outcome.remedy)

    def _recovered(self) -> None:
        self._down = self._asked_to_wait = False
        self._failures = 0
        self._replay_at = 0.0 if self._spool is not None else _NEVER
        self.log.recovered()

    # The spool: the sending thread delivers from it, both threads and a flush write to it.

    def _replay_next(self) -> None:
        """Deliver the next batch out of the spool, if it is time."""
        now = time.monotonic()
        if self._replay is None or now < self._replay_at:
            return
        try:
            self._replay_at = now + self._replay.next()
        except OSError as error:
            self._replay_at = now + self._replay.again_after_s
            self.log.spool_fails(error)

    def _try(self, request: bytes) -> Outcome:
        """Send a request and draw the conclusions from its outcome."""
        outcome = self._send(request)
        self._note(outcome)
        return outcome

    def _run_spooler(self) -> None:
        """Put on disk what cannot be sent, or not fast enough."""
        self._spooler_runs = True
        while not self._ended:
            with suppress(Empty):
                self._spooler_wakes.get(timeout=min(self._delay_s, _SPOOL_EVERY_S))
            try:
                if self._queue.crowded() or self._urgent or (self._down and not self._may_try()):
                    self._spool_now()
                elif self._down and not self._queue.empty():
                    self.wake()  # it is time to try: with what waits, as the spool may be another process's to deliver
            except Exception as error:  # noqa: BLE001 -- the thread must go on
                report("stagetrace.otlp.export.sender", error)

    def _may_try(self) -> bool:
        return not self._trying and time.monotonic() >= self._try_at

    def _spool_now(self) -> None:
        self._spool_all()
        if self._urgent:
            self._spool_in_flight()
        with self._state:
            self._state.notify_all()

    def _spool_all(self) -> None:
        """Put all that waits into the spool, unless the disk fails."""
        while time.monotonic() >= self._spool_at:
            with self._state:
                batch = self._queue.take(self._batch)
                if batch is None:
                    return
                self._in_hand += batch.spans
            self._store_for_later(batch)

    def _to_spool(self, batch: Batch) -> bool:
        """Return whether the batch need not be kept in memory any more."""
        if self._spool is None or time.monotonic() < self._spool_at:
            return False
        try:
            path = self._spool.write(self._queue.request(batch), batch.spans, breach=batch.breach, at=batch.taken_ns)
        except Exception as error:  # noqa: BLE001 -- a disk fails in many ways
            self._spool_at = time.monotonic() + _SPOOL_AGAIN_AFTER_S
            self.log.spool_fails(error)
            return False
        with self._state:
            self._counts["spooled" if path is not None else "spool_full"] += batch.spans
        if not self._down:
            self._replay_at = 0.0
        return True

    def _spool_in_flight(self) -> None:
        """Put the batch in flight into the spool as well; it is taken out again if it arrives after all."""
        with self._state:
            batch = self._in_flight
        if batch is None or self._early is not None or self._spool is None:
            return
        try:
            path = self._spool.write(self._queue.request(batch), batch.spans, breach=batch.breach, at=batch.taken_ns)
        except Exception as error:  # noqa: BLE001 -- as above
            self.log.spool_fails(error)
            return
        with self._state:
            if path is not None and self._in_flight is batch:
                self._early = path
                self._counts["spooled"] += batch.spans
            elif path is not None:
                self._remove(path)

    def _remove(self, path: Path) -> bool:
        return self._spool is not None and bool(guarded(self._spool.remove)(path))

    # The end.

    def flush(self, timeout_s: float) -> bool:
        """Send what waits; return whether all of it is delivered, or safe in the spool, in time."""
        with self._state:
            self._flushes += 1
        if not self._asked_to_wait:
            self._try_at = 0.0
        self.wake()
        if not self._running:  # no thread could be started, as in an interpreter that is about to end
            self._round_safely()
        if self._spool is None:
            patience = 0.0 if self._gave_up or not self._running else timeout_s
        else:
            patience = 0.0 if self._down else min(timeout_s, FLUSH_PATIENCE_S)
        with self._state:
            done = self._state.wait_for(self._idle, patience)
        if not done and self._spool is not None:
            self._urgent = True
            self._spooler_wakes.put(None)
            if not self._spooler_runs:
                self._spool_now()
            with self._state:  # the keeper writes, since a disk may hang
                done = self._state.wait_for(self._safe, timeout_s - patience)
            self._urgent = False
        with self._state:
            self._flushes -= 1
            if not done and not self._gave_up and not self._ended:
                left = self._queue.spans + self._in_hand + self._unsafe_in_flight()
                log.warning(f"not all spans were delivered to {self._client.target} in time: {left} still wait.")
            self._gave_up = not done
        return done

    def _idle(self) -> bool:
        return not self._busy and not self._in_hand and self._queue.empty()

    def _safe(self) -> bool:
        return not self._in_hand and not self._unsafe_in_flight() and self._queue.empty()

    def shutdown(self) -> None:
        """Flush within SHUTDOWN_BOUND_S, then end; log what is lost."""
        self.flush(SHUTDOWN_BOUND_S)
        self._ended = self.log.ending = True
        self.wake()
        self._spooler_wakes.put(None)
        with self._state:
            lost = self._queue.discard()
            self._counts["lost"] += lost
            lost += self._unsafe_in_flight()
        self.log.final(lost)
        self._client.shutdown()
