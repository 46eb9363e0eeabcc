"""A real OTLP receiver, gRPC and HTTP, that keeps what it takes and misbehaves as a test asks."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from backends import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

PROTOBUF = {"content-type": "application/x-protobuf"}


@dataclass(frozen=True)
class Reply:
    """What to do with one request: the fields for its protocol count. The default takes it."""

    takes: bool = True
    body: bytes = b""
    code: grpc.StatusCode | None = None
    details: str = ""
    trailers: tuple[tuple[str, bytes], ...] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(PROTOBUF))
    pause_s: float = 0
    reset: bool = False


TAKES = Reply()


class Receiver:
    """What arrived and was taken, in order. `script` is worked off before `always`."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.headers: list[dict[str, str]] = []  # of every request, refused ones included
        self.paths: list[str] = []
        self.clients: list[str] = []  # the names in the certificates of clients, empty without one
        self.asked = 0
        self.script: deque[Reply] = deque()
        self.always = TAKES
        self.ports = (free_port(), free_port())
        self._lock = threading.Lock()
        self._stop: list[Callable[[], Any]] = []

    @property
    def grpc(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def endpoint(self, protocol: str) -> str:
        return self.grpc if protocol == "grpc" else self.http

    def spans(self) -> list[Span]:
        with self._lock:
            requests = list(self.requests)
        return [
            span
            for request in requests
            for resource in ExportTraceServiceRequest.FromString(request).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]

    def wait_for(self, ready: Callable[[Receiver], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready(self):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s; asked {self.asked} times, took {len(self.spans())}")
            time.sleep(0.02)

    def record(self, path: str, client: str) -> None:
        """Note where a request went, and whose it is."""
        with self._lock:
            self.paths.append(path)
            self.clients.append(client)

    def respond(self, request: bytes, headers: dict[str, str]) -> Reply:
        with self._lock:
            self.asked += 1
            self.headers.append(headers)
            reply = self.script.popleft() if self.script else self.always
        time.sleep(reply.pause_s)
        if reply.takes:
            with self._lock:
                self.requests.append(request)
        return reply

    def start(self, *, tls: Path | None = None) -> None:
        """Serve; `tls` is a folder with ca.pem, server.pem and server.key, and asks for a client's certificate."""
        self._start_grpc(tls)
        self._start_http(tls)

    def stop(self) -> None:
        while self._stop:
            self._stop.pop()()

    def _start_grpc(self, tls: Path | None) -> None:
        def export(request: bytes, context: Any) -> bytes:
            (name,) = context.auth_context().get("x509_common_name", [b""])
            self.record("", name.decode())
            reply = self.respond(request, {key: str(value) for key, value in context.invocation_metadata()})
            if reply.code is not None:
                context.set_trailing_metadata(reply.trailers)
                context.abort(reply.code, reply.details)
            return reply.body

        handler = grpc.unary_unary_rpc_method_handler(export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        # Else another receiver could have the same port, and a part of what is sent to it.
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        address = f"127.0.0.1:{self.ports[0]}"
        if tls is None:
            assert server.add_insecure_port(address)
        else:
            read = {name: (tls / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key")}
            pair = [(read["server.key"], read["server.pem"])]
            credentials = grpc.ssl_server_credentials(pair, read["ca.pem"], require_client_auth=True)
            assert server.add_secure_port(address, credentials)
        server.start()
        self._stop.append(lambda: server.stop(None).wait())

    def _start_http(self, tls: Path | None) -> None:
        receiver = self
        connections: list[socket.socket] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                peer = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
                subject: Any = (peer or {}).get("subject", ())
                receiver.record(self.path, dict(pair for part in subject for pair in part).get("commonName", ""))
                reply = receiver.respond(body, {key.lower(): value for key, value in self.headers.items()})
                if reply.reset:
                    linger = struct.pack("ii", 1, 0)  # close with a reset, not with an end
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass

        server = Server(("127.0.0.1", self.ports[1]), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.pem", tls / "server.key")
            context.load_verify_locations(tls / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def stop() -> None:
            server.shutdown()
            server.server_close()
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

        self._stop.append(stop)


@contextmanager
def run_receiver(*, tls: Path | None = None) -> Iterator[Receiver]:
    """Run one until the block ends."""
    receiver = Receiver()
    receiver.start(tls=tls)
    try:
        yield receiver
    finally:
        receiver.stop()


@contextmanager
def run_no_receiver(first: bytes) -> Iterator[str]:
    """Accept connections, send `first` on each, and respond to nothing; give the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    connections[-1].sendall(first)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in connections:
            connection.close()


def partial_success(rejected: int, message: str) -> bytes:
    """Return a serialized response that took all but `rejected` spans."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()
