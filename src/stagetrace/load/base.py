"""The contract of a protocol of the load generator: one class that sends a request and reports its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from stagetrace.errors import StagetraceError


class LoadError(StagetraceError):
    """The target cannot be used; the message names the remedy."""


class Exchange(Protocol):
    """One request on its way."""

    sent_s: float | None
    """When it was handed to the network, or a connection for it begun, by the event loop's clock; None: not yet."""

    def cancel(self) -> None:
        """Give it up; its `done` is not called any more."""
        ...


class Sender(Protocol):
    """Sends requests over one protocol to one target, as many at a time as there are."""

    async def open(self) -> None:
        """Connect. Raise LoadError where no server listens."""
        ...

    def send(self, number: int, traceparent: str, done: Callable[[str | None], None]) -> Exchange:
        """Start a request, the `number`th, and return at once.

        `done` is called once, later: with None, or with why it failed in a few words that many requests may share.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
