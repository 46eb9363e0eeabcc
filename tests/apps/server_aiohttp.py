"""A service of aiohttp.web: `python server_aiohttp.py`, or as `server_aiohttp:app` by gunicorn."""

import asyncio
import os

import server_work as work
from aiohttp import WSMsgType, web

if os.environ.get("KIND") in ("instrumentor", "provider"):
    from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

    work.instrumented(AioHttpServerInstrumentor)

routes = web.RouteTableDef()


@routes.get("/health")
async def health(_: web.Request) -> web.Response:
    return web.json_response({"pid": os.getpid()})


@routes.post("/predict/{id}")
async def predict(request: web.Request) -> web.Response:
    asked = await request.json()
    return web.json_response({"id": request.match_info["id"], "scores": work.predict(asked["seconds"])})


@routes.post("/echo")
async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


@routes.post("/parts")
async def parts(request: web.Request) -> web.Response:
    sizes = [len(part) async for part in request.content.iter_chunked(10_000)]
    return web.json_response({"bytes": sum(sizes)})


@routes.get("/stream")
async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Kind": "stream"})
    await response.prepare(request)
    for chunk in work.CHUNKS:
        await response.write(chunk)
        await asyncio.sleep(0.01)
    await response.write_eof()
    return response


@routes.get("/big")
async def big(_: web.Request) -> web.Response:
    return web.Response(body=b"x" * 8_000_000)


@routes.get("/raise")
async def fail(_: web.Request) -> web.Response:
    raise ValueError("no such model")


@routes.get("/broken-stream")
async def broken_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    raise ValueError("half way")


@routes.get("/refuse")
async def refuse(_: web.Request) -> web.Response:
    raise web.HTTPForbidden(text="not for you")


@routes.get("/empty")
async def empty(_: web.Request) -> web.Response:
    return web.Response(status=204)


@routes.get("/thread")
async def in_a_thread(_: web.Request) -> web.Response:
    return web.json_response(await work.in_a_thread())


@routes.get("/task")
async def in_a_task(_: web.Request) -> web.Response:
    return web.json_response(await work.in_a_task())


@routes.get("/child")
async def child(_: web.Request) -> web.Response:
    work.child()
    return web.Response(text="done")


@routes.get("/hang")
async def hang(_: web.Request) -> web.Response:
    await asyncio.sleep(0.5)
    return web.Response(body=b"x" * 100_000)


@routes.get("/file")
async def file(_: web.Request) -> web.FileResponse:
    return web.FileResponse(work.FILE)


@routes.get("/talk")
async def talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
            await socket.close()
    return socket


app = web.Application(client_max_size=10_000_000)
app.add_routes(routes)


def serve() -> None:
    web.run_app(app, port=work.PORT)


if __name__ == "__main__":
    serve()
