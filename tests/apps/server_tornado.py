"""A service of tornado: `python server_tornado.py`; with WSGI=1 it serves a Flask application."""

import asyncio
import os
from typing import Any

import server_work as work
from tornado import web, websocket
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

if os.environ.get("KIND") in ("instrumentor", "provider"):
    from opentelemetry.instrumentation.tornado import TornadoInstrumentor

    work.instrumented(TornadoInstrumentor)


class Health(web.RequestHandler):
    def get(self) -> None:
        self.write({"pid": os.getpid()})


class Predict(web.RequestHandler):
    async def post(self, id: str) -> None:  # noqa: A002
        seconds = web.escape.json_decode(self.request.body)["seconds"]
        self.write({"id": id, "scores": work.predict(seconds)})


class Echo(web.RequestHandler):
    def post(self) -> None:
        self.write(self.request.body)


@web.stream_request_body
class Parts(web.RequestHandler):
    def prepare(self) -> None:
        self.size = 0

    def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)

    def post(self) -> None:
        self.write({"bytes": self.size})


class Stream(web.RequestHandler):
    async def get(self) -> None:
        self.set_header("X-Kind", "stream")
        for chunk in work.CHUNKS:
            self.write(chunk)
            await self.flush()
            await asyncio.sleep(0.01)


class Big(web.RequestHandler):
    def get(self) -> None:
        self.write(b"x" * 8_000_000)


class Fail(web.RequestHandler):
    def get(self) -> None:
        raise ValueError("no such model")


class BrokenStream(web.RequestHandler):
    async def get(self) -> None:
        self.write("one")
        await self.flush()
        raise ValueError("half way")


class Refuse(web.RequestHandler):
    def get(self) -> None:
        raise web.HTTPError(403, "not for you")


class Empty(web.RequestHandler):
    def get(self) -> None:
        self.set_status(204)


class Thread(web.RequestHandler):
    async def get(self) -> None:
        self.write({"scores": await work.in_a_thread()})


class Task(web.RequestHandler):
    async def get(self) -> None:
        self.write({"scores": await work.in_a_task()})


class Child(web.RequestHandler):
    def get(self) -> None:
        work.child()
        self.write("done")


class Hang(web.RequestHandler):
    async def get(self) -> None:
        await asyncio.sleep(0.5)
        self.write(b"x" * 100_000)


class Talk(websocket.WebSocketHandler):
    async def on_message(self, message: Any) -> None:
        await self.write_message(message.upper())
        self.close()


def application() -> Any:
    if os.environ.get("WSGI"):
        from flask_light import app as flask
        from tornado.wsgi import WSGIContainer

        return WSGIContainer(flask)
    here, file = os.path.split(work.FILE)
    return web.Application(
        [
            ("/health", Health),
            ("/predict/([a-z0-9]+)", Predict),
            ("/echo", Echo),
            ("/parts", Parts),
            ("/stream", Stream),
            ("/big", Big),
            ("/raise", Fail),
            ("/broken-stream", BrokenStream),
            ("/refuse", Refuse),
            ("/empty", Empty),
            ("/thread", Thread),
            ("/task", Task),
            ("/child", Child),
            ("/hang", Hang),
            ("/talk", Talk),
            ("/file", web.RedirectHandler, {"url": f"/static/{file}"}),
            (r"/static/(?P<path>.*)", web.StaticFileHandler, {"path": here}),
        ],
        websocket_ping_interval=None,
    )


app = application()


def serve() -> None:
    server = HTTPServer(app, max_buffer_size=10_000_000)
    if work.WORKERS > 1:
        server.bind(work.PORT, "127.0.0.1")
        server.start(work.WORKERS)
        IOLoop.current().start()
    else:
        asyncio.run(_alone(server))


async def _alone(server: HTTPServer) -> None:
    server.listen(work.PORT, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    serve()
