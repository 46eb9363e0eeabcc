"""Quart, with a blueprint, a websocket and work in the background."""

from typing import Any

from any_parts import later, pieces, preprocess
from quart import Blueprint, Quart, request, websocket

app = Quart(__name__)
inner = Blueprint("inner", __name__)


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.get("/items/<int:item>")
async def item(item: int) -> dict[str, int]:
    return {"item": item}


@inner.get("/items/<item>")
async def inner_item(item: str) -> dict[str, str]:
    return {"item": item}


@app.post("/tree")
async def tree() -> dict[str, bool]:
    await request.get_data()
    await preprocess()
    return {"ok": True}


@app.get("/broken")
async def broken() -> None:
    raise ValueError("broken")


@app.get("/stream")
async def stream() -> Any:
    return pieces()


@app.get("/background")
async def background() -> dict[str, bool]:
    app.add_background_task(later)
    return {"ok": True}


@app.websocket("/talk/<room>")
async def talk(room: str) -> None:
    await websocket.accept()
    await websocket.send(await websocket.receive())


app.register_blueprint(inner, url_prefix="/inner")
