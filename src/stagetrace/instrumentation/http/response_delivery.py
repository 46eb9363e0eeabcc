"""Whether a client has disconnected, and whether it had the whole response, as announced by its headers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from stagetrace.instrumentation.connection.lookup import transport_of

if TYPE_CHECKING:
    from collections.abc import Iterable

BODILESS: Final = (204, 304)
AT_ONCE: Final = 16_384  # bytes: the initial size of a connection's send buffer in Linux
LENGTH: Final = ("content-length", b"content-length")


def announced(method: str, status: int | None, headers: Iterable[tuple[Any, Any]] | None) -> int | None:
    """Return the length of a response's body in bytes, by its headers of bytes or str; None if they do not give it."""
    if method == "HEAD" or status in BODILESS:
        return 0
    for name, value in headers or ():
        if name.lower() in LENGTH:
            try:
                return int(value)
            except (TypeError, ValueError):  # a fault of the application, which the server handles
                return None
    return None


def is_written(connection: Any, size: int) -> bool:
    """Return whether a server has passed all `size` bytes for an ASGI connection on to the kernel.

    Where the server does not show how many are left, only as few as any connection takes at once count as passed on.
    """
    transport = transport_of(connection)
    if transport is None:
        return size <= AT_ONCE
    return bool(not transport.is_closing() and transport.get_write_buffer_size() == 0)


@functools.cache
def disconnect_flag(module: str) -> str | None:
    """Return the attribute of this module's connections that is true once the client has disconnected, if any."""
    servers = {"uvicorn": "disconnected", "hypercorn": "closed"}
    return servers.get(module.partition(".")[0])
