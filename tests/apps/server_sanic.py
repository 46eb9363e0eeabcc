"""A service of sanic: `python server_sanic.py`, or as `server_sanic:app` by an ASGI server."""

import asyncio
import os
from typing import Any

import server_work as work
from sanic import Forbidden, Request, Sanic, Websocket, empty, file, json, raw, text

work.instrumented(None)
app = Sanic("served")
app.config.REQUEST_MAX_SIZE = 10_000_000
app.config.FALLBACK_ERROR_FORMAT = "text"


@app.get("/health")
async def health(_: Request) -> Any:
    return json({"pid": os.getpid()})


@app.post("/predict/<id>")
async def predict(request: Request, id: str) -> Any:  # noqa: A002
    return json({"id": id, "scores": work.predict(request.json["seconds"])})


@app.post("/echo")
async def echo(request: Request) -> Any:
    return raw(request.body)


@app.post("/parts", stream=True)
async def parts(request: Request) -> Any:
    size = 0
    while (part := await request.stream.read()) is not None:
        size += len(part)
    return json({"bytes": size})


@app.get("/stream")
async def stream(request: Request) -> None:
    response = await request.respond(headers={"X-Kind": "stream"})
    for chunk in work.CHUNKS:
        await response.send(chunk)
        await asyncio.sleep(0.01)
    await response.eof()


@app.get("/big")
async def big(_: Request) -> Any:
    return raw(b"x" * 8_000_000)


@app.get("/raise")
async def fail(_: Request) -> Any:
    raise ValueError("no such model")


@app.get("/broken-stream")
async def broken_stream(request: Request) -> None:
    response = await request.respond()
    await response.send("one")
    raise ValueError("half way")


@app.get("/refuse")
async def refuse(_: Request) -> Any:
    raise Forbidden("not for you")


@app.get("/empty")
async def nothing(_: Request) -> Any:
    return empty()


@app.get("/thread")
async def in_a_thread(_: Request) -> Any:
    return json(await work.in_a_thread())


@app.get("/task")
async def in_a_task(_: Request) -> Any:
    return json(await work.in_a_task())


@app.get("/child")
def child(_: Request) -> Any:
    work.child()
    return text("done")


@app.get("/hang")
async def hang(_: Request) -> Any:
    await asyncio.sleep(0.5)
    return raw(b"x" * 100_000)


@app.get("/file")
async def a_file(_: Request) -> Any:
    return await file(work.FILE)


@app.websocket("/talk")
async def talk(_: Request, socket: Websocket) -> None:
    message = await socket.recv()
    await socket.send(str(message).upper())


def serve() -> None:
    app.run("127.0.0.1", work.PORT, workers=work.WORKERS, single_process=work.WORKERS == 1, access_log=False)


if __name__ == "__main__":
    serve()
