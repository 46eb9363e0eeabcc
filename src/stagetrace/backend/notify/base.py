"""The contract of a receiver of alerts: one module of this folder, and one line in `alerts/start.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stagetrace.rules.alert_messages import Message


class NotTaken(Exception):  # noqa: N818 -- what happened, not a fault of ours
    """A receiver did not take messages; the text says why, and holds neither a path nor a secret."""


class Receiver(Protocol):
    """Takes messages. It is asked by one thread, and may block it for a bounded time."""

    name: str
    """What kind it is, for logs and counters."""

    shown: str
    """Its address without path and credentials."""

    key: str
    """What identifies this receiver at this address."""

    repeat_s: float
    """After how long an alert that still fires is posted again."""

    def batches(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Yield the messages in parts, each of which is sent as one request."""
        ...

    def post(self, batch: Sequence[Message], now_unix_nano: int) -> None:
        """Send a part. Raise NotTaken, after which it is sent again later."""
        ...
