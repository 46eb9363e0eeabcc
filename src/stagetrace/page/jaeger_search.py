"""`/search`, where links to Jaeger's page lead: to the breaches that such a link is about.

This page has Jaeger's port, and links of alerts and of Grafana's board are made for it.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from starlette.responses import RedirectResponse
from starlette.routing import Route

from stagetrace.semconv import SLA_BREACHED, SLA_OBJECTIVE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request


async def _respond(request: Request) -> RedirectResponse:
    return RedirectResponse(target(request.query_params), HTTPStatus.SEE_OTHER)


def target(params: Mapping[str, str]) -> str:
    """Return the page's URL for a search in Jaeger's page, of which service, lookback and tags count."""
    try:
        tags = json.loads(params.get("tags") or "{}")
    except (ValueError, RecursionError):
        tags = {}
    of_tags = {key: value for key, value in tags.items() if key != SLA_BREACHED} if isinstance(tags, dict) else {}
    named = {"service": params.get("service"), "judged-by": of_tags.pop(SLA_OBJECTIVE, None)}
    lookback = params.get("lookback", "")
    named["since"] = lookback if lookback[-1:].isalpha() and lookback[:-1].isdigit() else None  # not `custom`
    pairs = [(name, str(value)) for name, value in named.items() if value]
    pairs += [("segment", f"{key}={value}") for key, value in of_tags.items()]
    return f"/breaches?{urlencode(pairs)}"


ROUTE: Final = Route("/search", _respond, methods=["GET"])
