"""Writes of commands while a back end has their store open: HTTP over a Unix socket of its user alone, both ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import tempfile
import threading
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log
from stagetrace.backend.intake import Intake, too_large
from stagetrace.backend.options import BackendError, Limits
from stagetrace.backend.refusal import MALFORMED, Refused
from stagetrace.errors import StoreError
from stagetrace.store.base import Closing
from stagetrace.store.local import Appended, LocalStore, StoreTaken
from stagetrace.system.access import is_of_user

if TYPE_CHECKING:
    from stagetrace.backend.counters import Counters

# --- Writes to a store that a back end has open: through its Unix socket, as `control.py` serves it.

APPEND: Final = "/append"  # a serialized ExportTraceServiceRequest -> {"accepted": 1, "rejected": 0, "reason": null}
PRUNE: Final = "/prune"  # a time in ns, as text -> {"removed": 1}


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


# --- Writes of commands on this machine, while a back end has their store open: HTTP over a Unix socket of its user
# alone.
#
# The folder's lock holds the socket's path. There is no token and no TLS: the kernel reports the user at the other end.

_TRANSPORT: Final = "http"
_IDLE_S: Final = 60  # until more of a request has to be received
_POLL_S: Final = 0.1  # until the server's thread sees that it has to end


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves commands of this user and of root. `_lock` guards `_open`, the connections in work."""

    request_queue_size = 64

    def __init__(self, path: Path, store: LocalStore, counters: Counters) -> None:
        super().__init__(str(path), _Handler)
        self.store = store
        self.intake = Intake(store, counters, Limits())  # limits of its own, apart from those of the network
        self._lock = threading.Lock()
        self._open: set[Any] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), name="stagetrace-control")

    def start(self) -> None:
        """Serve in threads of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the work on requests, and wait until it has ended."""
        self.intake.stopping.set()
        self.shutdown()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        self.server_close()
        self._thread.join()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 -- its signature
        """Return whether to serve a connection."""
        if is_of_user(request, 0, os.geteuid()):
            return True
        log.once("control user", "a process of another user connected to the socket of commands, and was not served")
        return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in its thread."""
        with self._lock:
            if self.intake.stopping.is_set():
                return
            self._open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log that a command disconnected; what went wrong in a request itself is a response."""
        log.debug("a command that writes to the store disconnected")


class _Handler(BaseHTTPRequestHandler):
    """Serves one request of a connection."""

    server: _Server
    timeout = _IDLE_S

    def do_POST(self) -> None:
        """Append or prune."""
        status, content = self._respond()
        body = content.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its signature
        """Log nothing of a request."""

    def _respond(self) -> tuple[int, str]:
        work = {APPEND: self._append, PRUNE: self._prune}.get(self.path)
        if work is None:
            return 404, f"the process that has the store open does not know {self.path[:80]}: it is another version"
        try:
            return 200, json.dumps(work())
        except Refused as refused:
            return refused.kind.status, refused.message
        except (StoreError, OSError) as error:
            return 503, str(error)
        except Exception as error:  # noqa: BLE001 -- the last stop before socketserver, which would print a traceback
            log.error(f"a command's {self.path} failed: {type(error).__name__}: {error}")
            return 500, "the back end failed on this request; see its log"

    def _append(self) -> dict[str, Any]:
        intake = self.server.intake
        with intake.counted(_TRANSPORT), intake.limit_request() as limits:
            length = self._length()
            if length > intake.limits.request:
                raise too_large(intake.limits.request)
            limits.grow(length)
            request = self._body(length)
            intake.counters.add("received_bytes", _TRANSPORT, length)
            return intake.append(_TRANSPORT, request, limits)._asdict()

    def _prune(self) -> dict[str, Any]:
        text = self._body(min(self._length(), 20))
        if not text.isdigit():
            raise Refused(MALFORMED, f"{text!r} is not a time in nanoseconds")
        return {"removed": self.server.store.prune(int(text))}

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not text.isascii() or not text.isdigit():
            raise Refused(MALFORMED, "the request has no Content-Length")
        return int(text)

    def _body(self, length: int) -> bytes:
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(MALFORMED, "the request ended early, or the back end is stopping")
        return body


def serve_commands(store: LocalStore, counters: Counters, stack: ExitStack) -> None:
    """Serve commands until `stack` ends, and write into the folder's lock where. Raise BackendError."""
    # Not in the store's own folder: a socket's path may have a hundred characters and no more.
    folder = Path(tempfile.mkdtemp(prefix="stagetrace-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "control"
    try:
        server = _Server(path, store, counters)
    except OSError as error:
        raise BackendError(
            f"cannot make the socket {path}: {error}\nset TMPDIR to a folder with a short path, on a local disk"
        ) from None
    server.start()
    stack.callback(server.stop)
    store.announce(path)
