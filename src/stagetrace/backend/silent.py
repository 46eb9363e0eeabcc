"""Connections whose clients have sent nothing yet: thousands of them keep nobody waiting.

Python's own system calls release the GIL, and a thread gets it back late where others work. asyncio makes some ten of
them for each new connection. On Linux those made here keep the GIL; none of them blocks.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from stagetrace.backend.http_limits import Place

_IS_LINUX: Final = sys.platform == "linux"
_C: Final[Any] = ctypes.PyDLL(None, use_errno=True) if _IS_LINUX else None
_EVENT: Final = struct.Struct("=IQ" if platform.machine() == "x86_64" else "@IQ")  # packed on that one alone
_ADD, _REMOVE = 1, 2  # EPOLL_CTL_ADD, EPOLL_CTL_DEL
_AT_ONCE: Final = 16  # connections that are opened before others are served


def accept(listening: socket.socket) -> socket.socket:
    """Accept one connection from a socket that does not block. Raise OSError."""
    if not _IS_LINUX:
        return listening.accept()[0]
    descriptor = _checked(_C.accept4(listening.fileno(), None, None, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
    return socket.socket(listening.family, listening.type, listening.proto, descriptor)


class Silent:
    """Calls `begun` once a client has sent something, and drops the place of one that hangs up before.

    Used from one event loop. The newest is opened first: those that came by the thousand delay themselves alone.
    """

    def __init__(self, begun: Callable[[Place, socket.socket], None]) -> None:
        self._begun = begun
        self._places: dict[int, tuple[int, Place, socket.socket]] = {}  # by descriptor, with its number in their order
        self._count = 0
        if _IS_LINUX:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def close(self) -> None:
        """Drop all."""
        for _, place, _ in list(self._places.values()):
            place.drop()
        if _IS_LINUX:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()

    def add(self, place: Place, accepted: socket.socket) -> None:
        """Wait for the first byte. Raise OSError."""
        if not _IS_LINUX:
            self._begun(place, accepted)
            return
        self._control(_ADD, accepted.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        self._count += 1
        self._places[accepted.fileno()] = self._count, place, accepted

    def discard(self, accepted: socket.socket) -> None:
        """Wait no longer."""
        if self._places.pop(accepted.fileno(), None) is not None:
            self._control(_REMOVE, accepted.fileno(), 0)

    def _control(self, what: int, descriptor: int, events: int) -> None:
        _checked(_C.epoll_ctl(self._epoll.fileno(), what, descriptor, _EVENT.pack(events, descriptor)))

    def _look(self) -> None:
        ready = self._epoll.poll(0, max(1, len(self._places)))
        found = [(*self._places[descriptor], events) for descriptor, events in ready]
        begun = []
        for number, place, accepted, events in found:
            if events != select.EPOLLIN and not _has_sent(accepted):
                place.drop()
            else:
                begun.append((number, place, accepted))
        begun.sort(key=lambda one: one[0], reverse=True)
        for _, place, accepted in begun[:_AT_ONCE]:
            self.discard(accepted)
            self._begun(place, accepted)


def _has_sent(accepted: socket.socket) -> bool:
    """Return whether a client that has hung up sent something before."""
    try:
        return bool(accepted.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
