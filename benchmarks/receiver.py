"""A process of its own that takes OTLP over gRPC as cheaply as it can, so that it costs the measured one nothing.

Prints its endpoint; then answers each line on stdin with the number of spans that came since the last one.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from grpc import HandlerCallDetails, RpcMethodHandler

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
EMPTY_RESPONSE = b""


class Keep(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Keeps the bytes of each export as they came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def service(self, handler_call_details: HandlerCallDetails) -> RpcMethodHandler | None:  # type: ignore[type-arg]
        """Return a handler without (de)serialisers: bytes in, bytes out."""
        if handler_call_details.method != EXPORT:
            return None
        return grpc.unary_unary_rpc_method_handler(self._keep)

    def _keep(self, body: bytes, _context: grpc.ServicerContext) -> bytes:
        self.bodies.append(body)
        return EMPTY_RESPONSE

    def take(self) -> int:
        """Return the number of spans kept, and forget them. Decodes only now, when nothing is being measured."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        bodies, self.bodies = self.bodies, []
        requests = map(ExportTraceServiceRequest.FromString, bodies)
        return sum(len(s.spans) for request in requests for r in request.resource_spans for s in r.scope_spans)


def main() -> None:
    """Serve until stdin is closed."""
    keep = Keep()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[keep])
    print(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    server.start()
    for _ in sys.stdin:
        print(keep.take(), flush=True)
    server.stop(None).wait()


if __name__ == "__main__":
    main()
