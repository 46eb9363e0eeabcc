"""What a WSGI server knows of a request before it calls the application.

Programs that serve nothing import this too, with the patches of the servers: it imports no OpenTelemetry.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    # activity, attributes, begin, end (0: when the application is called), in nanoseconds since the epoch
    Wait = tuple[str, Mapping[str, Any] | None, int, int]


class Arrival(NamedTuple):
    """When a request arrived, in nanoseconds since the epoch, and what it has waited for since then."""

    start: int
    waits: tuple[Wait, ...]


# Set by a server's patch, and reset when the request begins.
arriving: ContextVar[Arrival | None] = ContextVar("stagetrace.arriving", default=None)
