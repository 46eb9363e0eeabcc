"""Serve BENCH_ROUTES routes with FastAPI, each with a model of its own; a dict finds the route.

FastAPI would try one route after the other, which would cost more than what is measured.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

ROUTES = int(os.environ.get("BENCH_ROUTES", "1"))


def stage(name: str, **attributes: str) -> AbstractContextManager[Any]:
    """Mark a stage, if BENCH_STAGES selects marks in the application."""
    if not os.environ.get("BENCH_STAGES"):
        return nullcontext()
    import stagetrace

    return stagetrace.stage(name, **attributes)


async def score(request: Request) -> Response:
    """Read the body, infer by the model that the path names, respond."""
    await request.body()
    with stage("inference", **{"ml.model.name": request.path_params["model"]}):
        pass
    return Response(b"{}", media_type="application/json")


class LookUp(BaseRoute):
    """One route for all paths, which passes each request on to its own."""

    def __init__(self, routes: dict[str, Route]) -> None:
        self._routes = routes

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        route = self._routes.get(scope.get("path", "").rpartition("/")[0])
        return route.matches(scope) if route is not None else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._routes[scope["path"].rpartition("/")[0]].handle(scope, receive, send)


app = FastAPI()
heads = [f"/v{number}/score" for number in range(ROUTES)]
app.router.routes = [LookUp({head: Route(f"{head}/{{model}}", score, methods=["POST"]) for head in heads})]
# In an order in which neighbours have nothing to do with each other; 7919 is prime to all numbers of routes in use.
paths = [f"/v{number}/score/model-{number}" for number in (turn * 7919 % ROUTES for turn in range(ROUTES))]
