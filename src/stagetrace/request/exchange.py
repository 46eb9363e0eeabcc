"""The other parties of a request, as it asks them: its caller where others record it, and what is known late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from stagetrace.sources.thread_cpu import Share

if TYPE_CHECKING:
    RemoteSection = tuple[int, int, "RemoteThread", Share]

NOT_HERE = 0  # the number of no thread of this process


class Caller(Protocol):
    """What is known of the peer where another instrumentation made the entry span, so that there is no adapter."""

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if there is no such header."""

    def deadline_ns(self) -> int | None:
        """Return for how long from its start the caller waits for the response, where the protocol itself says so."""


class LateReadings(Protocol):
    """What is known some time after a call, as when a device was done with it: the request asks for it."""

    def read(self, request: Any) -> None:
        """Note what is known by now on the request, which takes marks still; never wait."""

    def conclude(self, request: Any) -> None:
        """Note what is known at the end of the request, for the last time."""


class RemoteThread:
    """Stands for a thread of another process, in the place of a descriptor."""

    thread = NOT_HERE
