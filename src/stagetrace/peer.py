"""Which process is at the other end of a Unix socket, as the kernel knows it."""

from __future__ import annotations

import socket
import struct
from typing import Final

WORKS: Final = hasattr(socket, "SO_PEERCRED")  # on Linux
_CREDENTIALS: Final = struct.Struct("3i")


def credentials(connected: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group of the other end; of a listener, those with which it began to listen."""
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, group = _CREDENTIALS.unpack(found)
    return process, user, group


def is_of_user(connected: socket.socket, *users: int) -> bool:
    """Return whether the other end is a process of one of these users; True where the platform does not report it."""
    return not WORKS or credentials(connected)[1] in users
