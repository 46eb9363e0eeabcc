"""OTLP over gRPC, and over HTTP as protobuf or JSON: traces and metrics. No span becomes an object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stagetrace.backend.grpc_port import REFUSING, Handlers, Slots, abort, read_message
from stagetrace.backend.http_port import BODY_DEADLINES, BodyDeadlines, receive_body
from stagetrace.backend.intake import (
    LARGE,
    Intake,
    RequestLimits,
    export_response,
    inflate,
    inflate_unnamed,
    too_large,
)
from stagetrace.backend.refusal import (
    INTERNAL,
    KINDS,
    MALFORMED,
    TOO_LARGE,
    UNSUPPORTED,
    Kind,
    Refused,
    status,
    too_many,
)
from stagetrace.backend.web import application
from stagetrace.otlp.decode.json import most_values, parse
from stagetrace.otlp.decode.request import TooManyHolders

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from stagetrace.backend.http_limits import Threads
    from stagetrace.backend.ports import Access

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_GRPC: Final = "grpc"
_HTTP: Final = "http"
# So many values are at most 0.2 s in which Python's reader of JSON lets nothing else run.
_LARGEST_JSON: Final = 16 << 20
_MOST_JSON_VALUES: Final = 500_000
# Stores a decompressed request that came over a transport in a form; returns the response. Raises Refused.
Store = Callable[[Intake, str, bytes, str, RequestLimits], "Message"]


def _store_spans(intake: Intake, transport: str, content: bytes, form: str, limits: RequestLimits) -> Message:
    if form != JSON:
        return export_response(intake.append(transport, content, limits))
    if most_values(content) > _MOST_JSON_VALUES:
        raise too_many(f"the JSON may have more than {_MOST_JSON_VALUES} values")
    try:
        request, rejected, reason = parse(content, limits.check)
    except TooManyHolders as error:
        raise Refused(TOO_LARGE, str(error)) from None
    except ValueError as error:
        raise Refused(MALFORMED, str(error)) from None
    serialized = request.SerializeToString()
    del request
    intake.counters.add("rejected_spans", transport, rejected)
    response = export_response(intake.append(transport, serialized, limits))
    if rejected:
        response.partial_success.rejected_spans += rejected
        reasons = (reason or "", response.partial_success.error_message)
        response.partial_success.error_message = "; ".join(filter(None, reasons))
    return response


def _store_counts(intake: Intake, transport: str, content: bytes, form: str, limits: RequestLimits) -> Message:
    return intake.append_counts(transport, content, limits, is_json=form == JSON)


# --- OTLP over gRPC: one method each of the trace and the metrics service, in raw bytes. No span becomes an object.

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS_METHOD: Final = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
# gRPC buffers a message until it is whole: so many are read at one time.
_READS: Final = 8
_PATIENCE_S: Final = 0.5
# Requests of one moment share one fsync, so there are more of them in work than cores.
_IN_WORK: Final = 16
_WAITING: Final = 96  # for each of these
_LARGE_IN_WORK: Final = 2
THREADS: Final = _READS + _IN_WORK + _LARGE_IN_WORK + 3 * _WAITING + REFUSING


class _Slots(NamedTuple):
    reads: Slots
    work: Slots
    large: Slots


def receiver_handlers(intake: Intake) -> Handlers:
    """Return the handlers of OTLP's trace and metrics services. A call may wait in its thread, one of `THREADS`."""
    slots = _Slots(Slots(_READS, _WAITING, _PATIENCE_S), Slots(_IN_WORK, _WAITING), Slots(_LARGE_IN_WORK, _WAITING))
    return {METHOD: _handler(intake, slots, _store_spans), METRICS_METHOD: _handler(intake, slots, _store_counts)}


def _handler(intake: Intake, slots: _Slots, store: Store) -> grpc.RpcMethodHandler[Any, Any]:
    def export(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            with intake.counted(_GRPC), intake.limit_request() as limits:
                with slots.reads.hold(context) as slot:
                    message = read_message(messages, slot)
                    intake.counters.add("received_bytes", _GRPC, len(message))
                    limits.grow(len(message))
                if not context.add_callback(limits.abandon):
                    limits.abandon()
                with slots.work.hold(context):
                    request = inflate_unnamed(message, intake.limits.request, limits)
                    if len(request) <= LARGE:
                        return store(intake, _GRPC, request, PROTOBUF, limits).SerializeToString()
                with slots.large.hold(context):
                    return store(intake, _GRPC, request, PROTOBUF, limits).SerializeToString()
        except Refused as refused:
            abort(context, refused)

    return grpc.stream_unary_rpc_method_handler(export)


# --- OTLP over HTTP: `POST /v1/traces` and `POST /v1/metrics`, protobuf or JSON. A response has its form.

PATH: Final = "/v1/traces"
METRICS_PATH: Final = "/v1/metrics"
MARKS_PATH: Final = "/v1/marks"  # {"text": "deploy 1.5.0"}, in JSON: names this moment
_LARGEST_MARK: Final = 4096


def receiver_app(
    intake: Intake, access: Access, threads: Threads, heavy: Threads, deadlines: BodyDeadlines = BODY_DEADLINES
) -> ASGIApp:
    """Return the app of the OTLP port. JSON and large requests are stored in the threads `heavy`, apart from others."""

    def route(path: str, store: Store) -> Route:
        async def handle(request: Request) -> Response:
            form = _form(request)
            try:
                with intake.counted(_HTTP), intake.limit_request() as limits:
                    form = _need(form, request)
                    body = await receive_body(request, intake, limits, deadlines)
                    encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
                    take = partial(_take, intake, store, body, encoding, form, limits)
                    found = await threads.run(request, take, limits.abandon)
                    if isinstance(found, bytes):
                        limits.begin()
                        take_large = partial(store, intake, _HTTP, found, form, limits)
                        found = await heavy.run(request, take_large, limits.abandon)
                    return _respond(200, found, form)
            except Refused as refused:
                # Its traceback and the future that it was raised of hold each other, and with them the request.
                return _refusal(refused.with_traceback(None), form)

        return Route(path, handle, methods=["POST"])

    async def mark(request: Request) -> Response:
        try:
            with intake.counted(_HTTP), intake.limit_request() as limits:
                body = await receive_body(request, intake, limits, deadlines)
                made = await threads.run(request, partial(_mark, intake, body), limits.abandon)
                return JSONResponse(made)
        except Refused as refused:
            return _refusal(refused.with_traceback(None), JSON)

    routes = [route(PATH, _store_spans), route(METRICS_PATH, _store_counts)]
    routes.append(Route(MARKS_PATH, mark, methods=["POST"]))
    return application(routes, _fault, access, intake.metrics, intake.counters)


def _mark(intake: Intake, body: bytes) -> dict[str, Any]:
    if len(body) > _LARGEST_MARK:
        raise too_large(_LARGEST_MARK)
    try:
        text = json.loads(body)["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise Refused(MALFORMED, 'this is no mark: send {"text": "deploy 1.5.0"}')
    return intake.mark(text)


def _take(
    intake: Intake, store: Store, body: bytes, encoding: str, form: str, limits: RequestLimits
) -> Message | bytes:
    """Store a body and return the response; of JSON and of a large one, return what is to be stored."""
    limits.check()
    most = intake.limits.request if form == PROTOBUF else min(_LARGEST_JSON, intake.limits.request)
    content = inflate(body, encoding, most, limits)
    if len(content) > most:
        raise too_large(most)
    return content if form == JSON or len(content) > LARGE else store(intake, _HTTP, content, form, limits)


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
        paths = f"traces go to {PATH}, metrics to {METRICS_PATH}, marks to {MARKS_PATH}"
        message = f"there is no {request.url.path[:80]}; {paths}"
    return _refusal(Refused(kind, message), _form(request))
