"""Litestar, with an application mounted in it, a websocket and work in the background."""

from typing import Any

from any_parts import later, pieces, preprocess
from any_starlette import inner
from litestar import Controller, Litestar, Request, Response, asgi, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream


@get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


class Items(Controller):
    path = "/items"

    @get("/{item:int}")
    async def item(self, item: int) -> dict[str, int]:
        return {"item": item}


@post("/tree", status_code=200)
async def tree(request: Request) -> dict[str, bool]:
    await request.body()
    await preprocess()
    return {"ok": True}


@get("/broken")
async def broken() -> None:
    raise ValueError("broken")


@get("/stream")
async def stream() -> Stream:
    return Stream(pieces())


@get("/background")
async def background() -> Response:
    return Response({"ok": True}, background=BackgroundTask(later))


@websocket("/talk/{room:str}")
async def talk(socket: Any, room: str) -> None:
    await socket.accept()
    await socket.send_text(await socket.receive_text())
    await socket.close()


@asgi("/inner", is_mount=True, copy_scope=False)
async def mounted(scope: Any, receive: Any, send: Any) -> None:
    await inner(scope, receive, send)


app = Litestar([health, Items, tree, broken, stream, background, talk, mounted])
