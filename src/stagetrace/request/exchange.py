"""The other parties of a request, as its record asks them: its adapter, and its entry span.

They know the record, which knows them by this alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

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


class Exchange(Caller, Protocol):
    """What is known of the connection with the peer: a request's record asks the adapter of the protocol."""

    def time_in_kernel_ns(self) -> int:
        """Return for how long the data received last lay in the kernel; 0 if that is unknown."""

    def fits_buffer(self, activity: str) -> bool:
        """Return whether so few bytes passed in all sends or receives that none waited for the other side."""

    def has_unacked(self) -> bool:
        """Return whether the peer has not acknowledged all bytes of a response yet; True where that is unknown."""

    def method_and_route(self) -> tuple[str | None, str]:
        """Return method and route as the policy names them, as far as they are known by now."""

    def transfer_attributes(self, start: int) -> dict[str, Any]:
        """Return what the entry span, which begins at `start`, carries of how request and response passed."""

    def connection_attributes(self) -> dict[str, Any]:
        """Return what the kernel reports of the connection now, as the request ends."""


class EntrySpan(Protocol):
    """The request's entry span, where that is ours: `own_span.OwnSpan`."""

    @property
    def context(self) -> SpanContext:
        """The entry span's own context."""

    @property
    def has_identity(self) -> bool:
        """Whether somebody has asked who this span is."""

    def gives_way(self, parent: SpanContext | None) -> bool:
        """Return whether a SERVER span of somebody else's, with this parent, may still take its place."""

    def give_way(self, entry: SpanContext) -> None:
        """Leave the request to an entry span of somebody else's."""

    def take_ids(self, context: SpanContext, parent: SpanContext | None) -> None:
        """Be known by the ids of a SERVER span that is sent nowhere."""


class RemoteThread:
    """Stands for a thread of another process, in the place of a descriptor."""

    thread = NOT_HERE
