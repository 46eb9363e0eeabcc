"""Who else has access: to files in shared folders, to a socket's other end, by an address of the host."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of this user's, which is made (0600) where `flags` have O_CREAT.

    Raise OSError where it is a link, no regular file, or another user's. Root may open those of all users.
    """
    refusal = PermissionError(errno.EPERM, f"{path} is a link, or no regular file of this user's", str(path))
    try:
        descriptor = os.open(path, flags | _FLAGS, 0o600)
    except OSError as error:
        raise (refusal if error.errno == errno.ELOOP else error) from None
    about = os.fstat(descriptor)
    is_ours = not hasattr(os, "geteuid") or os.geteuid() in (0, about.st_uid)
    if not stat.S_ISREG(about.st_mode) or not is_ours:
        os.close(descriptor)
        raise refusal
    return descriptor


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


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`. A name other than localhost may resolve to any address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)
