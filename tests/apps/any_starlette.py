"""Starlette, with an application mounted in it, a websocket, files and work in the background."""

from pathlib import Path
from typing import Any

from any_parts import later, pieces, preprocess
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles


async def health(request: Any) -> JSONResponse:
    return JSONResponse({"ok": True})


async def item(request: Any) -> JSONResponse:
    return JSONResponse({"item": request.path_params["item"]})


async def tree(request: Any) -> JSONResponse:
    await request.body()
    await preprocess()
    return JSONResponse({"ok": True})


async def broken(request: Any) -> None:
    raise ValueError("broken")


async def stream(request: Any) -> StreamingResponse:
    return StreamingResponse(pieces())


async def background(request: Any) -> JSONResponse:
    return JSONResponse({"ok": True}, background=BackgroundTask(later))


async def talk(websocket: Any) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


inner = Starlette(routes=[Route("/items/{item}", item), Route("/broken", broken)])
app = Starlette(
    routes=[
        Route("/health", health),
        Route("/items/{item:int}", item),
        Route("/tree", tree, methods=["POST"]),
        Route("/broken", broken),
        Route("/stream", stream),
        Route("/background", background),
        WebSocketRoute("/talk/{room}", talk),
        Mount("/inner", inner),
        Mount("/files", StaticFiles(directory=Path(__file__).parent / "static")),
    ]
)
