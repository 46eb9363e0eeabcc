"""Whether a client has gone, and whether it had all that the response announced: then it may close as it likes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from stagetrace.instrumentation.connection.lookup import transport_of

if TYPE_CHECKING:
    from collections.abc import Iterable

BODILESS: Final = (204, 304)
AT_ONCE: Final = 16_384  # bytes: what Linux gives a connection's send buffer to begin with
LENGTH: Final = ("content-length", b"content-length")


def announced(method: str, status: int | None, headers: Iterable[tuple[Any, Any]] | None) -> int | None:
    """Return how many bytes the body of a response has, by its headers of bytes or texts; None if they do not say."""
    if method == "HEAD" or status in BODILESS:
        return 0
    for name, value in headers or ():
        if name.lower() in LENGTH:
            try:
                return int(value)
            except (TypeError, ValueError):  # the application's fault, which the server deals with
                return None
    return None


def is_written(connection: Any, size: int) -> bool:
    """Return whether a server has handed all `size` bytes for an ASGI `send`'s connection to the kernel.

    Where the server does not show what it has left, so few as any connection takes at once are believed to be.
    """
    transport = transport_of(connection)
    if transport is None:
        return size <= AT_ONCE
    return bool(not transport.is_closing() and transport.get_write_buffer_size() == 0)


@functools.cache
def gone_flag(module: str) -> str | None:
    """Return the attribute by which a connection of this module says that its client has gone, if it has one."""
    servers = {"uvicorn": "disconnected", "hypercorn": "closed"}
    return servers.get(module.partition(".")[0])
