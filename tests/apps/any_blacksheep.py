"""BlackSheep, with an application mounted in it, a websocket and routes that have filters."""

import asyncio
from typing import Any

from any_starlette import inner
from blacksheep import Application, Content, Request, Response, Router, WebSocket
from blacksheep.contents import StreamedContent
from blacksheep.server.responses import json
from opentelemetry import trace

import stagetrace

filtered = Router(params={"kind": "own"})
router = Router(sub_routers=[filtered])
app = Application(router=router)


@filtered.get("/filtered/<item>")
async def of_a_kind(item: str) -> Response:
    return json({"item": item})


@router.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@router.get("/items/{int:item}")
async def item(item: int) -> Response:
    return json({"item": item})


@router.post("/tree")
async def tree(request: Request) -> Response:
    await request.read()
    with stagetrace.stage("preprocess"), trace.get_tracer("app").start_as_current_span("of the app"):
        await asyncio.sleep(0.002)
    return Response(200, content=Content(b"application/json", b'{"ok":true}'))


@router.get("/broken")
async def broken() -> None:
    raise ValueError("broken")


@router.get("/stream")
async def stream() -> Response:
    async def pieces() -> Any:
        for _ in range(3):
            await asyncio.sleep(0.01)
            yield b"piece"

    return Response(200, content=StreamedContent(b"text/plain", pieces))


@router.ws("/talk/:room")
async def talk(websocket: WebSocket, room: str) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


app.mount("/inner", inner)
