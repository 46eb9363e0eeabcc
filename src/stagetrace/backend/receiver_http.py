"""OTLP over HTTP: `POST /v1/traces` and `POST /v1/metrics`, protobuf or JSON. A response has its form."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from stagetrace.backend.inflate import inflate, too_large
from stagetrace.backend.intake import Intake, Room, export_response
from stagetrace.backend.refusal import INTERNAL, KINDS, MALFORMED, SLOW, UNSUPPORTED, Kind, Refused, status
from stagetrace.backend.web import application
from stagetrace.otlp.decode.json import parse

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from stagetrace.backend.access import Access


PATH: Final = "/v1/traces"
METRICS_PATH: Final = "/v1/metrics"
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_TRANSPORT: Final = "http"
_IDLE_S: Final = 30  # between two chunks of a body


def receiver_app(intake: Intake, access: Access) -> ASGIApp:
    """Return the app of the OTLP port."""
    routes = [Route(PATH, _Export(intake).handle, methods=["POST"])]
    routes.append(Route(METRICS_PATH, _MetricsExport(intake).handle, methods=["POST"]))
    return application(routes, _fault, access, intake.metrics, intake.counters)


class _Export:
    """The route of spans. `_parsing` lets one JSON body at a time become Python objects, many times its size."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._parsing = threading.Lock()

    async def handle(self, request: Request) -> Response:
        form = _form(request)
        try:
            with self._intake.counted(_TRANSPORT), self._intake.room() as room:
                form = _need(form, request)
                body = await self._body(request, room)
                encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
                response = await run_in_threadpool(self._take, body, encoding, form, room)
                return _respond(200, response, form)
        except Refused as refused:
            return _refusal(refused, form)

    async def _body(self, request: Request, room: Room) -> bytes:
        """Return the body as received. Raise Refused at the limit, before more of it is held."""
        limit = self._intake.limits.request
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise too_large(limit)
        chunks: list[bytes] = []
        more = True
        while more:
            try:
                message = await asyncio.wait_for(request.receive(), _IDLE_S)
            except (asyncio.TimeoutError, TimeoutError):
                raise Refused(SLOW, f"no more of the body was received within {_IDLE_S} s") from None
            if message["type"] == "http.disconnect":
                raise Refused(MALFORMED, "the sender disconnected before the end of the body")
            chunk = message.get("body", b"")
            room.grow(len(chunk))
            chunks.append(chunk)
            self._intake.counters.add("received_bytes", _TRANSPORT, len(chunk))
            if room.held > limit:
                raise too_large(limit)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _take(self, body: bytes, encoding: str, form: str, room: Room) -> Message:
        limit = self._intake.limits.request
        content = inflate(body, encoding, limit, room.grow)
        if form == PROTOBUF:
            return export_response(self._intake.append(_TRANSPORT, content, room))
        with self._parsing:
            try:
                request, rejected, reason = parse(content)
            except ValueError as error:
                raise Refused(MALFORMED, str(error)) from None
            serialized = request.SerializeToString()
            del request
        self._intake.counters.add("rejected_spans", _TRANSPORT, rejected)
        response = export_response(self._intake.append(_TRANSPORT, serialized, room))
        if rejected:
            response.partial_success.rejected_spans += rejected
            response.partial_success.error_message = reason or ""
        return response


class _MetricsExport(_Export):
    """The route of metrics."""

    def _take(self, body: bytes, encoding: str, form: str, room: Room) -> Message:
        content = inflate(body, encoding, self._intake.limits.request, room.grow)
        if form == PROTOBUF:
            return self._intake.append_counts(_TRANSPORT, content)
        with self._parsing:
            return self._intake.append_counts(_TRANSPORT, content, is_json=True)


def _need(form: str | None, request: Request) -> str:
    if form is None:
        given = request.headers.get("content-type", "")[:80]
        raise Refused(UNSUPPORTED, f"content-type {given!r} is neither {PROTOBUF} nor {JSON}")
    return form


def _form(request: Request) -> str | None:
    """Return which of the two forms the request is in, or None for another."""
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return found if found in (PROTOBUF, JSON) else None


def _respond(code: int, message: Message, form: str | None) -> Response:
    if form == PROTOBUF:
        return Response(message.SerializeToString(), code, media_type=PROTOBUF)
    from google.protobuf.json_format import MessageToJson

    return Response(MessageToJson(message, indent=None), code, media_type=JSON)


def _refusal(refused: Refused, form: str | None) -> Response:
    response = _respond(refused.kind.status, status(refused), form)
    if refused.kind.retry_after_s is not None:
        response.headers["retry-after"] = str(refused.kind.retry_after_s)
    return response


def _fault(code: int, message: str, request: Request) -> Response:
    """Return what starlette or the guard refuses, in OTLP's form."""
    kind = next((one for one in KINDS if one.status == code), Kind("other", code, INTERNAL.code))
    if code == 404:  # noqa: PLR2004
        message = f"there is no {request.url.path[:80]}; traces go to {PATH}, metrics to {METRICS_PATH}"
    return _refusal(Refused(kind, message), _form(request))
