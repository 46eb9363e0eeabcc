"""A model behind servers without a patch, each as its documentation has it: `python unpatched_servers.py SERVER`."""

import asyncio
import os
import sys
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

SERVER, PORT = sys.argv[1], int(os.environ.get("PORT", "8080"))
rows = np.arange(8.0).reshape(4, 2)
model = LogisticRegression().fit(rows, [0, 0, 1, 1])
model.predict(rows)  # as many do, to warm it up


def predict() -> str:
    return str(model.predict(rows).tolist())


def serve_aiohttp() -> None:
    from aiohttp import web

    async def health(_request: Any) -> web.Response:
        return web.Response(text="ok")

    async def answer(_request: Any) -> web.Response:
        return web.Response(text=predict())

    async def in_a_thread(_request: Any) -> web.Response:
        return web.Response(text=await asyncio.to_thread(predict))

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/predict", answer), web.get("/thread", in_a_thread)])
    web.run_app(app, port=PORT)


def serve_http() -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (predict() if self.path == "/predict" else "ok").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


def serve_tornado() -> None:
    from tornado import web

    class Health(web.RequestHandler):
        def get(self) -> None:
            self.write("ok")

    class Predict(web.RequestHandler):
        def get(self) -> None:
            self.write(predict())

    async def main() -> None:
        web.Application([("/health", Health), ("/predict", Predict)]).listen(PORT)
        await asyncio.Event().wait()

    asyncio.run(main())


if SERVER == "sanic":  # its workers import this module, and look for the application
    from sanic import Sanic, text

    app = Sanic("unpatched")

    @app.get("/health")
    async def health(_request: Any) -> Any:
        return text("ok")

    @app.get("/predict")
    async def answer(_request: Any) -> Any:
        return text(predict())


def serve_sanic() -> None:
    app.run(port=PORT)


def serve_robyn() -> None:
    from robyn import Robyn

    app = Robyn(__file__)
    app.get("/health")(lambda: "ok")
    app.get("/predict")(predict)
    app.start(port=PORT)


if __name__ == "__main__":
    {
        "aiohttp.web": serve_aiohttp,
        "http.server": serve_http,
        "tornado": serve_tornado,
        "sanic": serve_sanic,
        "robyn": serve_robyn,
    }[SERVER]()
