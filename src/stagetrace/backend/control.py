"""Writes of commands while a back end has their store open: HTTP over a Unix socket of its user alone, both ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from contextlib import nullcontext
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from stagetrace.backend.counters import PAGE_PORT, Counters
from stagetrace.backend.http_limits import Threads
from stagetrace.backend.http_port import BODY_DEADLINES, HttpServer, receive_body
from stagetrace.backend.intake import Intake, RequestLimits
from stagetrace.backend.options import BackendError, Limits, Listening
from stagetrace.backend.refusal import MALFORMED, NOT_FOUND, STORE, Refused
from stagetrace.errors import StoreError
from stagetrace.store.base import Closing
from stagetrace.store.local import Appended, LocalStore, StoreTaken
from stagetrace.system.access import is_of_user

if TYPE_CHECKING:
    from contextlib import ExitStack

    from starlette.requests import Request
    from starlette.types import ASGIApp

# --- Writes to a store that a back end has open, through its Unix socket.

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


# --- The other end: an HTTP port on a Unix socket of this user alone, beside the four of the back end.
#
# The folder's lock holds the socket's path. There is no token and no TLS: the kernel reports the user at the other end.

_TRANSPORT: Final = "http"
_AT_WORK: Final = 4
_MOST: Final = 64  # connections


def command_server(store: LocalStore, intake: Intake, stack: ExitStack) -> tuple[HttpServer, socket.socket]:
    """Return a server of commands and its socket, whose path is in the folder's lock. Raise BackendError."""
    # Not in the store's own folder: a socket's path may have a hundred characters and no more.
    folder = Path(tempfile.mkdtemp(prefix="stagetrace-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "control"
    bound = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        bound.bind(str(path))
        bound.listen(_MOST)
    except OSError as error:
        raise BackendError(
            f"cannot make the socket {path}: {error}\nset TMPDIR to a folder with a short path, on a local disk"
        ) from None
    bound.setblocking(False)  # noqa: FBT003 -- takes no name
    # Its limits are apart from those of the network.
    own = Intake(store, intake.counters, Limits(), intake.stopping)
    app = _commands(store, own, stack.enter_context(Threads(_AT_WORK, _MOST)))
    # Its connections are counted apart, since they are none of the network.
    server = HttpServer(app, Listening(), PAGE_PORT, Counters(), most=_MOST)
    store.announce(path)
    return server, bound


def _commands(store: LocalStore, intake: Intake, threads: Threads) -> ASGIApp:
    """Return the app that appends and prunes."""

    def append(request: bytes, limits: RequestLimits) -> dict[str, Any]:
        return intake.append(_TRANSPORT, request, limits)._asdict()

    def prune(before: bytes, _limits: RequestLimits) -> dict[str, Any]:
        if not before.isdigit():
            raise Refused(MALFORMED, f"{before[:20]!r} is not a time in nanoseconds")
        try:
            return {"removed": store.prune(int(before))}
        except StoreError as error:
            raise Refused(STORE, str(error)) from None

    works = {APPEND: append, PRUNE: prune}

    async def respond(request: Request) -> Response:
        path: str = request.scope["path"]
        try:
            if path not in works:
                what = f"the process that has the store open does not know {path[:80]}: it is another version"
                raise Refused(NOT_FOUND, what)  # noqa: TRY301 -- as all others are
            counted = intake.counted(_TRANSPORT) if path == APPEND else nullcontext()
            with counted, intake.limit_request() as limits:
                body = await receive_body(request, intake, limits, BODY_DEADLINES)
                return JSONResponse(await threads.run(request, partial(works[path], body, limits), limits.abandon))
        except Refused as refused:
            return PlainTextResponse(refused.message, refused.kind.status)

    return Starlette(routes=[Route("/{path:path}", respond, methods=["POST"])])
