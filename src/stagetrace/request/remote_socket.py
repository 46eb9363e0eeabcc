"""A side channel between the processes of one service: a process that works for another's request reports its stages.

A process that hands requests on listens at a Unix socket, named by a random word that travels with each request. The
process that works for one writes there before it gives its response: once the response is read, the report lies in the
kernel and is read without waiting. No process is woken, and none waits to write. Linux only.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import select
import socket
import sys
import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from stagetrace import log
from stagetrace.guard import guarded
from stagetrace.system.access import credentials

if TYPE_CHECKING:
    from collections.abc import Callable

WORKS = sys.platform == "linux"  # sockets that need no file, and SOCK_SEQPACKET
MAX_MESSAGE = 1 << 16
MAX_WAITING = 256  # messages, for a process that does not listen for long: the kernel keeps some 150 besides
MAX_LINES = 64
FREE_PART = 2  # of the kernel's buffer: an optional message leaves half of it to the others
BACKLOG = 64


def _address(word: str) -> str:
    return f"\0stagetrace-{word}"  # no file: nothing to protect in a folder, and nothing to follow


def _trusted(connected: socket.socket) -> int | None:
    """Return the process at the other end; None, logged once, if it is of another user, who is not root either.

    Of the listener, the kernel gives who it was when it began to listen. Any user can bind an address of this kind,
    and connect to it: both ends look.
    """
    process, user, _ = credentials(connected)
    if user in (0, os.geteuid()):
        return process
    log.once(
        "channel user",
        f"process {process} of user {user} is at the other end of a channel of this service, whose user is "
        f"{os.geteuid()}:\nnothing is read from it or sent to it. Let all processes of a service run as one user.",
    )
    return None


class Listener:
    """Reads what other processes of the same user report to this one."""

    def __init__(self, word: str) -> None:
        self._lock = threading.Lock()  # guards all below
        self._lines: dict[int, tuple[socket.socket, int]] = {}  # by file descriptor: and the other's process id
        self._poll = select.epoll()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)  # noqa: FBT003
            self._socket.bind(_address(word))
            self._socket.listen(BACKLOG)
            self._poll.register(self._socket.fileno(), select.EPOLLIN)
        except OSError:
            self.close()
            raise
        self.gone: OrderedDict[int, None] = OrderedDict()  # processes that have ended since they reported
        self.has_read = False

    def read(self, receive: Callable[[Any, int], None]) -> None:
        """Call `receive` with all that has been reported until now, and by which process. Never waits."""
        with self._lock:
            if self._poll.closed:
                return
            for descriptor, _ in self._poll.poll(0):
                if descriptor == self._socket.fileno():
                    self._accept(receive)
                else:
                    self._read(descriptor, receive)

    def _accept(self, receive: Callable[[Any, int], None]) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except BlockingIOError:
                return
            process = _trusted(line)
            if process is None:
                line.close()
                continue
            line.setblocking(False)  # noqa: FBT003
            self._lines[line.fileno()] = line, process
            self._poll.register(line.fileno(), select.EPOLLIN)
            self.gone.pop(process, None)
            self._read(line.fileno(), receive)

    def _read(self, descriptor: int, receive: Callable[[Any, int], None]) -> None:
        line, process = self._lines[descriptor]
        while True:
            try:
                message = line.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._poll.unregister(descriptor)
                del self._lines[descriptor]
                line.close()
                self.gone[process] = None
                if len(self.gone) > MAX_LINES:
                    self.gone.popitem(last=False)
                return
            self.has_read = True
            _pass_on(receive, message, process)

    def close(self) -> None:
        """Stop to listen; in a forked child, leave the socket to the parent."""
        self._poll.close()
        self._socket.close()
        for line, _ in self._lines.values():
            line.close()


@guarded
def _pass_on(receive: Callable[[Any, int], None], message: bytes, process: int) -> None:
    receive(json.loads(message), process)


class Line:
    """The connection to one listener. Not thread-safe."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._socket: socket.socket | None = None
        self._is_dead = False
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)

    def send(self, message: bytes, *, is_optional: bool = False) -> None:
        """Send as much as goes without waiting, the rest with the next message; nothing optional where that is much."""
        if self._is_dead or (is_optional and not self._has_room()):
            return
        if len(self._waiting) == MAX_WAITING:
            log.once(
                "channel full",
                "a server process listens too seldom to what its workers report: stages of some requests are missing.",
            )
        self._waiting.append(message)
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._socket.setblocking(False)  # noqa: FBT003
                self._socket.connect(_address(self._word))
                if _trusted(self._socket) is None:
                    self._give_up()
                    return
            while self._waiting:
                try:
                    self._socket.send(self._waiting[0])
                except OSError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
                self._waiting.popleft()
        except BlockingIOError:  # the listener's queue of connections or messages is full
            pass
        except OSError:  # it has ended, or is in another network namespace
            self._give_up()

    def _has_room(self) -> bool:
        if self._waiting:
            return False
        if self._socket is None:
            return True
        import fcntl
        import termios

        unread = int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return unread * FREE_PART < self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def _give_up(self) -> None:
        self._is_dead = True
        self._waiting.clear()
        self.close()

    def close(self) -> None:
        """Send nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_lock = threading.Lock()  # guards _lines
_lines: OrderedDict[str, Line] = OrderedDict()


def send(word: str, message: Any, *, is_optional: bool = False) -> None:
    """Send the process that is named `word` something that JSON can hold. Never waits.

    What is optional is not sent where that process listens too seldom.
    """
    if not WORKS:
        return
    text = json.dumps(message, separators=(",", ":")).encode()
    with _lock:
        line = _lines.get(word)
        if line is None:
            line = _lines[word] = Line(word)
            if len(_lines) > MAX_LINES:
                _lines.popitem(last=False)[1].close()
        line.send(text, is_optional=is_optional)


def _forget_lines() -> None:
    """Close all lines, in a forked process those of its parent: it reports on lines of its own."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    for line in _lines.values():
        line.close()
    _lines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lines)
atexit.register(_forget_lines)  # lest warnings of unclosed sockets are the last that a process logs
