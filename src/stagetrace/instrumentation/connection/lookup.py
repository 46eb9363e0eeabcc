"""Where servers keep the connection of a request.

A server of ASGI passes a `send` to the application that is a method of the object with the connection. Some servers of
WSGI put the socket into the environment.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.sources.base import Source

SOCKETS: Final = ("gunicorn.socket", "werkzeug.socket")
# The errors of a Unix socket.
_NO_TCP: Final = (errno.EOPNOTSUPP, errno.ENOPROTOOPT)


def transport_of(connection: Any) -> Any:
    """Return the asyncio transport of the object that an ASGI `send` is a method of; None if it cannot be reached."""
    found = getattr(connection, "transport", None)  # uvicorn
    if found is None and type(connection).__module__.startswith("hypercorn."):
        protocol = getattr(connection.send, "__self__", None)
        server = getattr(getattr(protocol, "send", None), "__self__", None)
        found = getattr(getattr(server, "writer", None), "transport", None)  # none with trio or QUIC
    return found


def socket_of(environ: Any) -> Any:
    """Return the socket of a WSGI request; None if its server does not give it away."""
    for key in SOCKETS:
        if key in environ:
            return environ[key]
    return None


@guarded
def note_error(source: Source, error: Exception, is_closed: Callable[[], bool]) -> None:
    """Count an error of a source, unless the socket is a Unix socket, or the client has disconnected."""
    if getattr(error, "errno", None) in _NO_TCP:
        source.silent = "requests came by a Unix socket, for which the kernel has no readings"
    elif not is_closed():
        source.failed(error)
