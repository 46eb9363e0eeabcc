"""OTLP over gRPC, and over HTTP as protobuf or JSON: traces and metrics. No span becomes an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from starlette.responses import Response
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
_GRPC: Final = "grpc"
Take = Callable[[Intake, bytes, RequestLimits], bytes]


class _Slots(NamedTuple):
    reads: Slots
    work: Slots
    large: Slots


def receiver_handlers(intake: Intake) -> Handlers:
    """Return the handlers of OTLP's trace and metrics services. A call may wait in its thread, one of `THREADS`."""
    slots = _Slots(Slots(_READS, _WAITING, _PATIENCE_S), Slots(_IN_WORK, _WAITING), Slots(_LARGE_IN_WORK, _WAITING))
    return {METHOD: _handler(intake, slots, _take_spans), METRICS_METHOD: _handler(intake, slots, _take_counts)}


def _take_spans(intake: Intake, request: bytes, limits: RequestLimits) -> bytes:
    return export_response(intake.append(_GRPC, request, limits)).SerializeToString()


def _take_counts(intake: Intake, request: bytes, limits: RequestLimits) -> bytes:
    return intake.append_counts(_GRPC, request, limits).SerializeToString()


def _handler(intake: Intake, slots: _Slots, take: Take) -> grpc.RpcMethodHandler[Any, Any]:
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
                        return take(intake, request, limits)
                with slots.large.hold(context):
                    return take(intake, request, limits)
        except Refused as refused:
            abort(context, refused)

    return grpc.stream_unary_rpc_method_handler(export)


# --- OTLP over HTTP: `POST /v1/traces` and `POST /v1/metrics`, protobuf or JSON. A response has its form.

PATH: Final = "/v1/traces"
METRICS_PATH: Final = "/v1/metrics"
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_HTTP: Final = "http"
# So many values are at most 0.2 s in which Python's reader of JSON lets nothing else run.
_LARGEST_JSON: Final = 16 << 20
_MOST_JSON_VALUES: Final = 500_000


def receiver_app(
    intake: Intake, access: Access, threads: Threads, heavy: Threads, deadlines: BodyDeadlines = BODY_DEADLINES
) -> ASGIApp:
    """Return the app of the OTLP port. JSON and large requests are stored in the threads `heavy`."""
    routes = [Route(PATH, _Export(intake, threads, heavy, deadlines).handle, methods=["POST"])]
    routes.append(Route(METRICS_PATH, _MetricsExport(intake, threads, heavy, deadlines).handle, methods=["POST"]))
    return application(routes, _fault, access, intake.metrics, intake.counters)


class _Uncounted:
    """The limits of a request for small content, which may be inflated once more: it does not count against them."""

    def __init__(self, limits: RequestLimits) -> None:
        self.check = limits.check

    def grow(self, count: int) -> None:
        """Count nothing."""


class _Export:
    """The route of spans. `heavy` are the threads of JSON and of large requests, so that these delay no others."""

    def __init__(self, intake: Intake, threads: Threads, heavy: Threads, deadlines: BodyDeadlines) -> None:
        self._intake = intake
        self._threads = threads
        self._heavy = heavy
        self._deadlines = deadlines

    async def handle(self, request: Request) -> Response:
        form = _form(request)
        try:
            with self._intake.counted(_HTTP), self._intake.limit_request() as limits:
                form = _need(form, request)
                body = await receive_body(request, self._intake, limits, self._deadlines)
                encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
                response = None
                if form == PROTOBUF and len(body) <= LARGE:
                    small = partial(self._take_small, body, encoding, limits)
                    response = await self._threads.run(request, small, limits.abandon)
                if response is None:
                    work = partial(self._take, body, encoding, form, limits)
                    response = await self._heavy.run(request, work, limits.abandon)
                return _respond(200, response, form)
        except Refused as refused:
            # Its traceback and the future that it was raised of hold each other, and with them the request.
            return _refusal(refused.with_traceback(None), form)

    def _take_small(self, body: bytes, encoding: str, limits: RequestLimits) -> Message | None:
        """Do as `_take` with a body of protobuf; return None where it inflates to a large one."""
        limits.check()
        try:
            content = inflate(body, encoding, min(LARGE, self._intake.limits.request), _Uncounted(limits))
        except Refused as refused:
            if refused.kind is TOO_LARGE:
                return None
            raise
        if content is not body:
            limits.grow(len(content))
        return self._store(content, PROTOBUF, limits)

    def _take(self, body: bytes, encoding: str, form: str, limits: RequestLimits) -> Message:
        """Store a body and return the response. Raise Refused."""
        limits.check()
        most = self._intake.limits.request
        most = min(_LARGEST_JSON, most) if form == JSON else most
        return self._store(inflate(body, encoding, most, limits), form, limits)

    def _store(self, content: bytes, form: str, limits: RequestLimits) -> Message:
        """Store a request and return the response. Raise Refused."""
        if form == JSON:
            return self._take_json(content, limits)
        return export_response(self._intake.append(_HTTP, content, limits))

    def _take_json(self, content: bytes, limits: RequestLimits) -> Message:
        if len(content) > _LARGEST_JSON:
            raise too_large(_LARGEST_JSON)
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
        self._intake.counters.add("rejected_spans", _HTTP, rejected)
        response = export_response(self._intake.append(_HTTP, serialized, limits))
        if rejected:
            response.partial_success.rejected_spans += rejected
            reasons = (reason or "", response.partial_success.error_message)
            response.partial_success.error_message = "; ".join(filter(None, reasons))
        return response


class _MetricsExport(_Export):
    """The route of metrics."""

    def _store(self, content: bytes, form: str, limits: RequestLimits) -> Message:
        return self._intake.append_counts(_HTTP, content, limits, is_json=form == JSON)


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
