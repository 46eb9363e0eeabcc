"""Which route of a Starlette or FastAPI application would serve a request."""

from __future__ import annotations

import sys
from typing import Any

from stagetrace.guard import guarded


@guarded
def template_of(scope: Any) -> str:
    """Return the template of the route that would serve a scope; empty if none would, or no application has run."""
    routes = getattr(scope.get("app"), "routes", ())
    # FastAPI from 0.137.2 on: routes of included routers, with their prefix.
    flat = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    partial = ""
    for route in flat(routes) if flat is not None else routes:
        if not hasattr(route, "matches"):  # of another framework
            return ""
        match, _ = route.matches(scope)
        if match.name == "FULL":
            return getattr(route, "path", None) or ""
        if match.name == "PARTIAL":  # of another method
            partial = partial or route.path
    return partial
