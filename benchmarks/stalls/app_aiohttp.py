"""Serve the stalls by aiohttp.web."""

from __future__ import annotations

import sys

from aiohttp import web

from benchmarks.stalls.planted import plant, resize_heap

routes = web.RouteTableDef()


@routes.get("/health")
async def health(_: web.Request) -> web.Response:
    """Report that the service is up."""
    return web.Response(text="ok")


@routes.post("/heap")
async def heap(request: web.Request) -> web.Response:
    """Keep so many objects."""
    resize_heap(int(request.query["objects"]))
    return web.Response(text="ok")


@routes.get("/stall/{stall}")
async def stall(request: web.Request) -> web.Response:
    """Stall in the event loop."""
    await plant(request.match_info["stall"], float(request.query["ms"]))
    return web.Response(text="ok")


if __name__ == "__main__":
    app = web.Application()
    app.add_routes(routes)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[-1]), print=None)
