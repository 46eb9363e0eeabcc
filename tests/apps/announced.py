"""Responses that announce their length and go on for a while after it: `app` for ASGI, `wsgi` for WSGI."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Mount, Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SIZES = {"/all": 1_000, "/half": 1_000, "/large": 30_000_000, "/empty": 0, "/head": 1_000}


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """Send all at once, or half of it, or much; end when the client has gone, or after a while."""
    path = scope["path"].removeprefix("/plain")
    size = SIZES[path]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    if size and path != "/head":
        body = b"x" * (size // 2 if path == "/half" else size)
        await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(1):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


async def stream(_request: Any) -> StreamingResponse:
    """Send all of it, and have something left to do before the end, in which it is cancelled."""

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 500
        yield b"x" * 500
        await asyncio.sleep(1)

    return StreamingResponse(body(), headers={"content-length": "1000"})


app = Starlette(routes=[Route("/health", stream), Route("/stream", stream), Mount("/plain", app=plain)])


def wsgi(environ: Any, start_response: Callable[..., Any]) -> Iterator[bytes]:
    """Yield all, or half, then pieces of nothing or the rest for a while."""
    path = environ["PATH_INFO"]
    if path == "/health":
        path = "/all"
    start_response("200 OK", [("Content-Length", "1000"), ("Content-Type", "text/plain")])
    yield b"x" * 500
    if path == "/all":
        yield b"x" * 500
    for _ in range(10):
        time.sleep(0.05)
        yield b"" if path == "/all" else b"x" * 50
