"""What a request's record asks the adapter of its protocol."""

from __future__ import annotations

from typing import Any, Protocol


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
