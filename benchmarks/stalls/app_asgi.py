"""Serve the stalls by a plain ASGI application."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from benchmarks.stalls.planted import plant, resize_heap


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Stall as the last part of the path says."""
    if scope["type"] != "http":
        return
    await receive()
    query = dict(parse_qsl(scope["query_string"].decode()))
    if "objects" in query:
        resize_heap(int(query["objects"]))
    elif "ms" in query:
        await plant(scope["path"].rpartition("/")[2], float(query["ms"]))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
