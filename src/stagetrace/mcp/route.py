"""The route `/mcp` of an HTTP port. Its first request loads the SDK, a second for which `up` must not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from stagetrace.mcp.base import Tool

PATH: Final = "/mcp"


class _Endpoint:
    """Serves agents; its server is made once, in a thread. Used from the event loop alone."""

    def __init__(self, tools: Callable[[], Sequence[Tool]]) -> None:
        self._tools = tools
        self._made: asyncio.Task[Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._made is None:
            self._made = asyncio.create_task(asyncio.to_thread(self._make))
        serve, server = await asyncio.shield(self._made)
        await serve(server, scope, receive, send)

    def _make(self) -> Any:
        from stagetrace.mcp.server import serve_http, server_of

        return serve_http, server_of(self._tools())


def route_of(tools: Callable[[], Sequence[Tool]]) -> Route:
    """Return the route; `tools` is called for the first request."""
    return Route(PATH, _Endpoint(tools), methods=["POST"])
