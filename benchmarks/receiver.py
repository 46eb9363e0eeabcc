"""Receive spans in a process of its own, as cheaply as possible, so that receiving costs the measured process nothing.

It accepts OTLP over gRPC and over HTTP, and what a Datadog agent accepts. It prints its two endpoints; then it answers
each line on stdin with the number of spans received since the last one.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from grpc import HandlerCallDetails, RpcMethodHandler

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
EMPTY_RESPONSE = b""
OTLP_PATH = "/v1/traces"
DATADOG_PATH = "/v0.5/traces"
# How a span of that format begins: an array of twelve, three numbers of texts, and two ids of 64 bits.
DATADOG_SPAN = re.compile(rb"\x9c(?:[\x00-\x7f]|\xcc.|\xcd..|\xce....){3}\xcf.{8}\xcf.{8}", re.DOTALL)


class Keep(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Keep the bytes of each export as received."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.datadog: list[bytes] = []

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
        datadog, self.datadog = self.datadog, []
        requests = map(ExportTraceServiceRequest.FromString, bodies)
        spans = sum(len(s.spans) for request in requests for r in request.resource_spans for s in r.scope_spans)
        return spans + sum(len(DATADOG_SPAN.findall(body)) for body in datadog)


class Http(BaseHTTPRequestHandler):
    """Accept posted bodies; `main` sets `keep`."""

    protocol_version = "HTTP/1.1"
    keep: Keep

    def do_GET(self) -> None:
        self._answer(json.dumps({"version": "7.70.0", "endpoints": [DATADOG_PATH]}).encode())

    def do_POST(self) -> None:
        body = self._body()
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        if self.path == OTLP_PATH:
            self.keep.bodies.append(body)
        elif self.path == DATADOG_PATH:
            self.keep.datadog.append(body)
        self._answer(b"{}" if self.path != OTLP_PATH else EMPTY_RESPONSE)

    do_PUT = do_POST  # noqa: N815 -- named by the library

    def _body(self) -> bytes:
        if self.headers["transfer-encoding"] != "chunked":
            return self.rfile.read(int(self.headers["content-length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def main() -> None:
    """Serve until stdin is closed."""
    keep = Http.keep = Keep()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[keep])
    http = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    http.daemon_threads = True
    Thread(target=http.serve_forever, daemon=True).start()
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"http://127.0.0.1:{grpc_port} http://127.0.0.1:{http.server_port}", flush=True)
    for _ in sys.stdin:
        print(keep.take(), flush=True)
    server.stop(None).wait()


if __name__ == "__main__":
    main()
