"""A request that has ended, as it is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from stagetrace.recording.record import RequestRecord


class Request(NamedTuple):
    """A request that has ended. Times in nanoseconds since the epoch; method and route as the policy names them."""

    start: int
    end: int
    method: str | None
    route: str
    record: RequestRecord | None  # None: nothing is known of it but its entry span
    failed: bool = False  # the response was a server's error
    span: Any = None  # the entry span, ours or an SDK's
