"""Tells one receiver of the alerts, in a thread of its own: bounded in its rate, and tried again where it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from stagetrace.backend.notify.base import NotTaken
from stagetrace.backend.throttled_log import ThrottledLog
from stagetrace.rules.alert_messages import Message, Told, aged, delivered, due, untold

if TYPE_CHECKING:
    from stagetrace.backend.counters import Counters
    from stagetrace.backend.notify.base import Receiver
    from stagetrace.rules.alert_state import Alert, Labels

MOST_A_MINUTE: Final = 60  # requests to one receiver
_FIRST_PAUSE_S: Final = 1.0  # after a failure; twice as long after each further one
_LONGEST_PAUSE_S: Final = 60.0
_LOG_S: Final = 60.0
_MINUTE_S: Final = 60.0


class Outbox:
    """Compares the newest alerts with what the receiver was told. `_state` guards all below it.

    `save` is called once the receiver has been told something.
    """

    def __init__(
        self, receiver: Receiver, told: Mapping[Labels, Told], counters: Counters, save: Callable[[], None]
    ) -> None:
        self.receiver = receiver
        self._counters = counters
        self._save = save
        self._log = ThrottledLog(_LOG_S)
        self._sent: list[float] = []  # when, within the last minute; of its thread alone
        self._state = threading.Condition()
        self._told = dict(told)
        self._alerts: Mapping[Labels, Alert] = {}
        self._is_new = self._closing = False
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name=f"stagetrace-{receiver.name}", daemon=True)

    def start(self) -> None:
        """Send in a thread of its own."""
        self._thread.start()

    def offer(self, alerts: Mapping[Labels, Alert], elapsed_s: float) -> None:
        """Take the alerts of the newest look, which came `elapsed_s` after the one before."""
        with self._state:
            lost = untold(self._alerts, alerts, self._told)
            self._alerts = alerts
            self._told = aged(self._told, elapsed_s)
            self._is_new = True
            self._state.notify_all()
        self._counters.add("alert_messages", "dropped", lost)

    def last_posted(self) -> dict[Labels, Told]:
        """Return what the receiver knows."""
        with self._state:
            return dict(self._told)

    @property
    def waiting(self) -> int:
        """Return how many messages have not been delivered."""
        return self._waiting

    def stop(self, within_s: float) -> None:
        """End, but for a request that does not: that ends with the process."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join(within_s)

    def _work(self) -> None:
        pause_s = 0.0
        while True:
            with self._state:
                until = time.monotonic() + pause_s
                while not self._closing and (not self._is_new or time.monotonic() < until):
                    self._state.wait(max(0.01, until - time.monotonic()) if self._is_new else None)
                if self._closing:
                    return
                messages = due(self._alerts, self._told, self.receiver.repeat_s, time.time_ns())
                self._is_new = False
            try:
                is_done = self._send(messages)
            except Exception as error:  # noqa: BLE001 -- the thread goes on: the next look finds what is left to send
                self._log.error("send", f"alerts could not be sent: {type(error).__name__}: {error}")
                is_done = False
            pause_s = 0.0 if is_done else min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
            if not is_done:
                with self._state:
                    self._is_new = True

    def _send(self, messages: list[Message]) -> bool:
        """Send what the rate allows, and return whether that was everything."""
        self._waiting = len(messages)
        is_done = True
        for batch in self.receiver.batches(messages):
            with self._state:
                if self._closing:
                    return False
            if not self._may_send():
                self._counters.add("alert_messages", "limited", len(batch))
                self._log.warning("rate", f"{self._name} gets more than {MOST_A_MINUTE} requests a minute: some wait")
                is_done = False
                continue
            try:
                self.receiver.post(batch, time.time_ns())
            except NotTaken as error:
                self._counters.add("alert_messages", "failed", len(batch))
                self._log.warning("taken", f"{self._name} did not take an alert, which is sent again: {error}")
                is_done = False
                continue
            with self._state:
                self._told = delivered(self._told, batch)
            self._waiting -= len(batch)
            self._counters.add("alert_messages", "sent", len(batch))
            self._save()
        return is_done

    @property
    def _name(self) -> str:
        return f"the {self.receiver.name} at {self.receiver.shown}"

    def _may_send(self) -> bool:
        now = time.monotonic()
        self._sent = [one for one in self._sent if one > now - _MINUTE_S]
        if len(self._sent) >= MOST_A_MINUTE:
            return False
        self._sent.append(now)
        return True
