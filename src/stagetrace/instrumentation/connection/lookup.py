"""Where servers keep the connection of a request.

Those of ASGI hand an application a `send` that is bound to what has the connection; some of WSGI put the socket into
the environment.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.sources.base import Source

SOCKETS: Final = ("gunicorn.socket", "werkzeug.socket")
# What a Unix socket answers.
_NO_TCP: Final = (errno.EOPNOTSUPP, errno.ENOPROTOOPT)


def transport_of(connection: Any) -> Any:
    """Return the asyncio transport of what an ASGI `send` is bound to; None where it cannot be reached."""
    found = getattr(connection, "transport", None)  # of uvicorn's
    if found is None and type(connection).__module__.startswith("hypercorn."):
        protocol = getattr(connection.send, "__self__", None)
        server = getattr(getattr(protocol, "send", None), "__self__", None)
        found = getattr(getattr(server, "writer", None), "transport", None)  # none with trio or QUIC
    return found


def socket_of(environ: Any) -> Any:
    """Return the socket of a WSGI request; None where its server keeps it to itself."""
    for key in SOCKETS:
        if key in environ:
            return environ[key]
    return None


@guarded
def look_into(source: Source, error: Exception, is_closed: Callable[[], bool]) -> None:
    """Count an error of a source that is none of a Unix socket, nor of a client that has gone away meanwhile."""
    if getattr(error, "errno", None) in _NO_TCP:
        source.silent = "requests came by a Unix socket, of which the kernel tells nothing"
    elif not is_closed():
        source.failed(error)
