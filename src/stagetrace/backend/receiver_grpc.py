"""OTLP over gRPC: one method each of the trace and the metrics service, in raw bytes. No span becomes an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import grpc

from stagetrace.backend.grpc_calls import REFUSING, Handlers, abort, read_message
from stagetrace.backend.inflate import inflate_unnamed
from stagetrace.backend.intake import LARGE, Intake, RequestLimits, export_response
from stagetrace.backend.refusal import Refused
from stagetrace.backend.slots import Slots

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
_TRANSPORT: Final = "grpc"
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
    return export_response(intake.append(_TRANSPORT, request, limits)).SerializeToString()


def _take_counts(intake: Intake, request: bytes, limits: RequestLimits) -> bytes:
    return intake.append_counts(_TRANSPORT, request, limits).SerializeToString()


def _handler(intake: Intake, slots: _Slots, take: Take) -> grpc.RpcMethodHandler[Any, Any]:
    def export(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            with intake.counted(_TRANSPORT), intake.limit_request() as limits:
                with slots.reads.hold(context) as slot:
                    message = read_message(messages, slot)
                    intake.counters.add("received_bytes", _TRANSPORT, len(message))
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
