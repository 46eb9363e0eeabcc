"""Deliver the batches of a spool, one at a time and no faster than a service can bear."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stagetrace.otlp.export.replay_order import ReplayOrder

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.otlp.export.response import Outcome
    from stagetrace.otlp.export.spool import Spool

LOOK_AGAIN_AFTER_S: Final = 30.0  # into an empty spool, to which other workers write as well
CLAIM_AGAIN_AFTER_S: Final = 5.0
_PACE: Final = 3  # pauses, as long as the delivery of a batch took, so that the service has the CPU
_SHORTEST_PAUSE_S: Final = 0.02


class Replay:
    """Takes batches out of `spool`, and sends them by `send`, which also decides when to try again after a failure."""

    def __init__(self, spool: Spool, send: Callable[[bytes], Outcome]) -> None:
        self._spool = spool
        self._send = send
        self._order = ReplayOrder(spool)
        self.delivered = 0  # spans, whichever process spooled them
        self.refused = 0

    def next(self) -> float:
        """Deliver one batch, if no other process delivers; return after how many seconds to call this again.

        Raise OSError where the disk fails.
        """
        spool, order = self._spool, self._order
        if not spool.claim():
            return CLAIM_AGAIN_AFTER_S
        started = time.monotonic()
        for name in order.turn():
            spooled = spool.spooled(name)
            request = spool.read(spooled) if spooled is not None else None
            if spooled is None or request is None:
                continue
            if order.suspects(name) and self._send(b"").retryable:  # the receiver takes no request at all
                order.away()
                spool.release()
                return 0.0  # with the next try
            outcome = self._send(request)
            if outcome.retryable:
                order.failed(name)
                spool.release()
                return 0.0  # with the next try
            refused = min(outcome.rejected, spooled.spans) if outcome.delivered else spooled.spans
            spool.settle(spooled, refused=refused)
            self.delivered += spooled.spans - refused
            self.refused += refused
            return max(_SHORTEST_PAUSE_S, _PACE * (time.monotonic() - started))
        spool.release()
        return LOOK_AGAIN_AFTER_S
