"""Falcon over ASGI, with a websocket, and work in the background."""

from typing import Any

from any_parts import later, pieces, preprocess
from falcon import asgi


class Health:
    async def on_get(self, _req: Any, resp: Any) -> None:
        resp.media = {"ok": True}


class Item:
    async def on_get(self, _req: Any, resp: Any, item: Any) -> None:
        resp.media = {"item": item}


class Tree:
    async def on_post(self, req: Any, resp: Any) -> None:
        await req.stream.read()
        await preprocess()
        resp.text = '{"ok":true}'


class Broken:
    async def on_get(self, _req: Any, _resp: Any) -> None:
        raise ValueError("broken")


class Stream:
    async def on_get(self, _req: Any, resp: Any) -> None:
        resp.stream = pieces()


class Background:
    async def on_get(self, _req: Any, resp: Any) -> None:
        resp.schedule_sync(later)
        resp.media = {"ok": True}


class Talk:
    async def on_websocket(self, _req: Any, ws: Any, **_: Any) -> None:
        await ws.accept()
        await ws.send_text(await ws.receive_text())
        await ws.close()


async def elsewhere(_req: Any, resp: Any, **_: Any) -> None:
    resp.media = {"sunk": True}


app = asgi.App()
app.add_route("/health", Health())
app.add_route("/items/{item:int}", Item())
app.add_route("/inner/items/{item}", Item())
app.add_route("/tree", Tree())
app.add_route("/broken", Broken())
app.add_route("/stream", Stream())
app.add_route("/background", Background())
app.add_route("/talk/{room}", Talk())
app.add_sink(elsewhere, "/sink")
