"""OTLP over gRPC: one method each of the trace and the metrics service, in raw bytes. No span becomes an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from stagetrace.backend.inflate import inflate_unnamed
from stagetrace.backend.intake import Intake, Room, export_response
from stagetrace.backend.refusal import Refused, status

if TYPE_CHECKING:
    from google.protobuf.message import Message


METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS_METHOD: Final = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_TRANSPORT: Final = "grpc"


class Receiver(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """Serves the one method each of OTLP's trace and metrics services."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of `Export`; for other methods None, which gRPC answers with UNIMPLEMENTED."""
        # Without (de)serializers gRPC hands over and takes the bytes themselves.
        if handler_call_details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(self._export)
        if handler_call_details.method == METRICS_METHOD:
            return grpc.unary_unary_rpc_method_handler(self._export_metrics)
        return None

    def _export(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        return self._taken(
            message, context, lambda request, room: export_response(self._intake.append(_TRANSPORT, request, room))
        )

    def _export_metrics(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        return self._taken(
            message, context, lambda request, room: self._intake.append_counts(_TRANSPORT, request, room)
        )

    def _taken(self, message: bytes, context: grpc.ServicerContext, take: Callable[[bytes, Room], Message]) -> bytes:
        intake = self._intake
        try:
            with intake.counted(_TRANSPORT), intake.room() as room:
                intake.counters.add("received_bytes", _TRANSPORT, len(message))
                room.grow(len(message))
                request = inflate_unnamed(message, intake.limits.request, room)
                return take(request, room).SerializeToString()
        except Refused as refused:
            abort(context, refused)


def abort(context: grpc.ServicerContext, refused: Refused) -> NoReturn:
    """End the call with the status of `refused`, and google.rpc.Status in the trailers."""
    context.set_trailing_metadata((("grpc-status-details-bin", status(refused).SerializeToString()),))
    context.abort(_CODES[refused.kind.code], refused.message)
    raise AssertionError("unreachable: abort raises")
