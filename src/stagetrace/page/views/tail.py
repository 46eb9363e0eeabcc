"""Requests as they arrive: the newest ones as a part, then a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import PlainTextResponse, StreamingResponse

from stagetrace.backend.descriptors import connections_of_ports
from stagetrace.backend.http_protocol import ENDLESS
from stagetrace.backend.refusal import short
from stagetrace.errors import StoreError
from stagetrace.output.request_line import cells, columns
from stagetrace.page.asked import Asked, BadRequest
from stagetrace.page.base import Part, View
from stagetrace.page.live import WAITING, Live, Viewer
from stagetrace.page.responses import HEADERS
from stagetrace.printable import printable
from stagetrace.store import answers

if TYPE_CHECKING:
    from contextlib import ExitStack

    from starlette.requests import Request
    from starlette.responses import Response

    from stagetrace.page.base import Endpoint, Site
    from stagetrace.store.base import Reader, Selection

_NEWEST: Final = 50
_SILENCE_S: Final = 10.0  # after which a comment shows that the other side is there
_PART_OF_PORT: Final = 8  # of its connections, one in so many may be a viewer
_EVER_NS: Final = 2**63 - 1


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return where the stream is, and how many rows are kept."""
    del site
    return {"stream": asked.part_url("/tail/events"), "kept_rows": WAITING}


def newest(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the newest requests of the selection, whose names the store need not know yet."""
    del site
    found: list[dict[str, Any]] = []
    try:
        with reader.relations(_selected(asked)) as relations:
            found, reason = answers.requests(relations, "start", _NEWEST), relations.reason
    except StoreError as error:
        reason = short(str(error))
    values = {"rows": [_row(one, asked) for one in found], "columns": columns(asked.zone)[:-1]}
    return Part("tail_newest.html", values, reason)


def routes(site: Site, stack: ExitStack) -> Mapping[str, Endpoint]:
    """Return the endpoint of the stream."""
    live = Live(site.open_reader, connections_of_ports().http // _PART_OF_PORT)
    stack.callback(live.close)

    async def events(request: Request) -> Response:
        try:
            asked = Asked.of(request.query_params.multi_items(), request.path_params, site.since)
        except BadRequest as error:
            return PlainTextResponse(str(error), 400, headers=HEADERS)
        if not live.has_room:
            return PlainTextResponse("as many watch as the back end takes", 503, headers=HEADERS)
        request.scope[ENDLESS] = True
        wanted = replace(_selected(asked), since_ns=0, until_ns=_EVER_NS)
        viewer = Viewer(request.url.query, wanted, lambda span: _row(answers.request_of(span), asked))
        return StreamingResponse(_stream(live, viewer), media_type="text/event-stream", headers=HEADERS)

    return {"events": events}


async def _stream(live: Live, viewer: Viewer) -> AsyncIterator[str]:
    live.join(viewer)
    try:
        yield "retry: 1000\n\n"
        while True:
            yield await viewer.events(_SILENCE_S)
    finally:
        live.leave(viewer)


def _selected(asked: Asked) -> Selection:
    return replace(asked.selection, breached=True if asked.one("breached") else None)


def _row(found: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Return a request as a row: the text of its cells, and a link in place of the last one, which is its trace."""
    *shown, trace_id = map(printable, cells(found, asked.zone))
    return {
        "id": f"{trace_id}-{found['span_id']}",
        "url": asked.url(f"/trace/{trace_id}"),
        "breached": bool(found["breached"]),
        "cells": shown,
    }


VIEW: Final = View(
    "tail",
    "Live tail",
    "/tail",
    "tail.html",
    {"newest": newest},
    shell,
    routes=routes,
    keeps=("breached",),
)
