"""BlackSheep, with an application mounted in it, a websocket and routes that have filters."""

from any_parts import pieces, preprocess
from any_starlette import inner
from blacksheep import Application, Content, Request, Response, Router, WebSocket
from blacksheep.contents import StreamedContent
from blacksheep.server.responses import json

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
    await preprocess()
    return Response(200, content=Content(b"application/json", b'{"ok":true}'))


@router.get("/broken")
async def broken() -> None:
    raise ValueError("broken")


@router.get("/stream")
async def stream() -> Response:
    return Response(200, content=StreamedContent(b"text/plain", pieces))


@router.ws("/talk/:room")
async def talk(websocket: WebSocket, room: str) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


app.mount("/inner", inner)
