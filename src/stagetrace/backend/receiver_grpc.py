"""OTLP over gRPC: one method each of the trace and the metrics service, in raw bytes. No span becomes an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from stagetrace.backend.grpc_calls import REFUSING, Handlers, abort, read_message
from stagetrace.backend.inflate import inflate_unnamed
from stagetrace.backend.intake import Intake, Room, export_response
from stagetrace.backend.refusal import Refused
from stagetrace.backend.slots import Slots

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS_METHOD: Final = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
# gRPC buffers a message until it is whole: so many are read at one time.
_READS: Final = 8
_PATIENCE_S: Final = 0.2
# Requests of one moment share one fsync, so there are more of them in work than cores.
_IN_WORK: Final = 16
_WAITING: Final = 128  # for either
THREADS: Final = _READS + _IN_WORK + 2 * _WAITING + REFUSING
_TRANSPORT: Final = "grpc"
Take = Callable[[Intake, bytes, Room], bytes]


def receiver_handlers(intake: Intake) -> Handlers:
    """Return the handlers of OTLP's trace and metrics services. A call may wait in its thread, one of `THREADS`."""
    slots = Slots(_READS, _WAITING, _PATIENCE_S), Slots(_IN_WORK, _WAITING)
    return {METHOD: _handler(intake, slots, take_spans), METRICS_METHOD: _handler(intake, slots, _take_counts)}


def take_spans(intake: Intake, message: bytes, room: Room) -> bytes:
    """Store the spans of a message, perhaps compressed, and return the serialized response. Raise Refused."""
    return export_response(intake.append(_TRANSPORT, _inflated(intake, message, room), room)).SerializeToString()


def _take_counts(intake: Intake, message: bytes, room: Room) -> bytes:
    return intake.append_counts(_TRANSPORT, _inflated(intake, message, room), room).SerializeToString()


def _inflated(intake: Intake, message: bytes, room: Room) -> bytes:
    return inflate_unnamed(message, intake.limits.request, room)


def _handler(intake: Intake, slots: tuple[Slots, Slots], take: Take) -> grpc.RpcMethodHandler[Any, Any]:
    reads, work = slots

    def export(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            with intake.counted(_TRANSPORT), intake.room() as room:
                with reads.hold(context) as slot:
                    message = read_message(messages, slot)
                    intake.counters.add("received_bytes", _TRANSPORT, len(message))
                    room.grow(len(message))
                with work.hold(context):
                    if not context.add_callback(room.abandon):
                        room.abandon()
                    return take(intake, message, room)
        except Refused as refused:
            abort(context, refused)

    return grpc.stream_unary_rpc_method_handler(export)
