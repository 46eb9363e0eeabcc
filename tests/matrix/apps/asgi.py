"""An ASGI application without a framework."""

from typing import Any

from work import WORK


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer as `WORK` does, and echo what is posted."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    body = WORK[scope["path"]]() if scope["method"] == "GET" else body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"asgi")]})
    await send({"type": "http.response.body", "body": body})
