"""Falcon over WSGI, under a part of the path, too."""

from typing import Any

import falcon
from werkzeug.middleware.dispatcher import DispatcherMiddleware


class Health:
    def on_get(self, _req: Any, resp: Any) -> None:
        resp.media = {"ok": True}


class Item:
    def on_get(self, _req: Any, resp: Any, item: Any) -> None:
        resp.media = {"item": item}


class Broken:
    def on_get(self, _req: Any, _resp: Any) -> None:
        raise ValueError("broken")


class Stream:
    def on_get(self, _req: Any, resp: Any) -> None:
        resp.stream = iter([b"piece"] * 3)


def sink(_req: Any, resp: Any, **_: Any) -> None:
    resp.media = {"sunk": True}


falcons = falcon.App()
falcons.add_route("/health", Health())
falcons.add_route("/items/{item:int}", Item())
falcons.add_route("/broken", Broken())
falcons.add_route("/stream", Stream())
falcons.add_sink(sink, "/sink")
app = DispatcherMiddleware(falcons, {"/inner": falcons})
