"""Writes of commands while a back end has their store open: HTTP over a Unix socket of its user alone.

The other end is `commands.py`. Commands load no web server.
"""

from __future__ import annotations

import json
import os
import socket
import time
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any, Final

from stagetrace.backend.alerts.silences import Silence, put
from stagetrace.backend.options import Limits
from stagetrace.errors import StoreError
from stagetrace.store.base import Closing, Mark
from stagetrace.store.local import Appended, LocalStore, StoreTaken
from stagetrace.system.access import is_of_user

if TYPE_CHECKING:
    from pathlib import Path

APPEND: Final = "/append"  # a serialized ExportTraceServiceRequest -> {"accepted": 1, "rejected": 0, "reason": null}
PRUNE: Final = "/prune"  # a time in ns, as text -> {"removed": 1}
SILENCE: Final = "/silence"  # {"objective": "a", "service": "", "seconds": 1} -> that, and "until_unix_nano"
MARK: Final = "/mark"  # a text -> {"at_unix_nano": 1, "text": "deploy"}


class _Connection(HTTPConnection):
    """HTTP to the process that has the store in `folder` open."""

    def __init__(self, folder: Path, control: Path) -> None:
        super().__init__("localhost")
        self._folder = folder
        self._control = control

    def connect(self) -> None:
        """Connect. Raise StoreError where the other process is of a user who is neither this one nor the store's."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._control))
        if not is_of_user(self.sock, os.geteuid(), self._folder.stat().st_uid):
            self.close()
            raise StoreError(
                f"the socket {self._control} is of another user than the store in {self._folder}\n"
                "no span was sent there; stop the process that the store's file `lock` names, and repeat the command"
            )


class Running(Closing):
    """The store of a folder by way of the process that has it open; writes as `LocalStore` does."""

    def __init__(self, folder: Path, control: Path) -> None:
        """Write to `folder` through the socket `control`."""
        self.folder = folder
        self._control = control

    def append(self, request: bytes) -> Appended:
        """Store one serialized ExportTraceServiceRequest; return when it is on disk. Raise StoreError."""
        if len(request) > Limits().request:
            raise StoreError(
                f"a request of {len(request):,} bytes is larger than the process that has the store takes\n"
                f"it takes {Limits().request:,}; stop it, and repeat the command"
            )
        return Appended(**self._call(APPEND, request))

    def prune(self, before_ns: int) -> int:
        """Drop all spans that started before; return how many. Raise StoreError."""
        return int(self._call(PRUNE, str(before_ns).encode())["removed"])

    def mark(self, text: str) -> Mark:
        """Name this moment; return when that is on disk. Raise StoreError."""
        return Mark(**self._call(MARK, text.encode("utf-8", "backslashreplace")))

    def silence(self, objective: str, service: str, seconds: float) -> Silence:
        """Let no receiver hear of alerts of an objective for so long. Raise StoreError."""
        asked = {"objective": objective, "service": service, "seconds": seconds}
        return Silence(**self._call(SILENCE, json.dumps(asked).encode()))

    def close(self) -> None:
        """Do nothing: each request has a connection of its own."""

    def _call(self, path: str, body: bytes) -> dict[str, Any]:
        connection = _Connection(self.folder, self._control)
        try:
            connection.request("POST", path, body)
            response = connection.getresponse()
            content = response.read().decode()
        except (OSError, HTTPException) as error:
            raise StoreError(
                f"the process that has the store in {self.folder} open has ended or does not respond ({error})\n"
                "acknowledged spans are stored; repeat the command: spans that are stored already count once"
            ) from None
        finally:
            connection.close()
        if response.status != 200:  # noqa: PLR2004
            raise StoreError(content)
        found: dict[str, Any] = json.loads(content)
        return found


def silence(folder: Path, objective: str, service: str, seconds: float) -> Silence:
    """Let no receiver hear of alerts of an objective for so long, as `silences.put` does. Raise StoreError."""
    with open_writer(folder) as store:
        if isinstance(store, Running):
            return store.silence(objective, service, seconds)
        return put(folder, objective, service, seconds, time.time_ns())


def open_writer(folder: Path) -> LocalStore | Running:
    """Open the local store in `folder`, or go through the `stagetrace up` that has it open.

    Raise StoreError if neither can be.
    """
    try:
        return LocalStore.open(folder)
    except StoreTaken as taken:
        if taken.control is None:
            raise
        return Running(folder, taken.control)
