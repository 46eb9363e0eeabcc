"""The other end of `control.py`: an HTTP port on a Unix socket of this user alone, beside the four of the back end.

The folder's lock holds the socket's path. There is no token and no TLS: the kernel reports the user at the other end.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from stagetrace.backend.alerts import silences
from stagetrace.backend.control import APPEND, MARK, PRUNE, SILENCE
from stagetrace.backend.counters import PAGE_PORT, Counters
from stagetrace.backend.http_limits import Threads
from stagetrace.backend.http_port import BODY_DEADLINES, HttpServer, receive_body
from stagetrace.backend.intake import Intake, RequestLimits
from stagetrace.backend.options import BackendError, Limits, Listening
from stagetrace.backend.refusal import MALFORMED, NOT_FOUND, STORE, Refused
from stagetrace.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from stagetrace.store.local import LocalStore

Work: TypeAlias = "Callable[[bytes, RequestLimits], dict[str, Any]]"
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
    """Return the app that appends, prunes, marks and silences."""

    def append(request: bytes, limits: RequestLimits) -> dict[str, Any]:
        return intake.append(_TRANSPORT, request, limits)._asdict()

    def mark(text: bytes, _limits: RequestLimits) -> dict[str, Any]:
        return intake.mark(text.decode("utf-8", "backslashreplace"))

    works: dict[str, Work] = {
        APPEND: append,
        PRUNE: partial(_prune, store),
        MARK: mark,
        SILENCE: partial(_silence, store),
    }

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


def _prune(store: LocalStore, before: bytes, _limits: RequestLimits) -> dict[str, Any]:
    if not before.isdigit():
        raise Refused(MALFORMED, f"{before[:20]!r} is not a time in nanoseconds")
    try:
        return {"removed": store.prune(int(before))}
    except StoreError as error:
        raise Refused(STORE, str(error)) from None


def _silence(store: LocalStore, content: bytes, _limits: RequestLimits) -> dict[str, Any]:
    try:
        return silences.put(store.folder, *silences.parse(content), time.time_ns())._asdict()
    except (ValueError, StoreError) as error:
        raise Refused(MALFORMED, str(error)) from None
