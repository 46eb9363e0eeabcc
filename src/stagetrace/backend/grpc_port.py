"""The server of one gRPC port: its limits, TLS and the token."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from stagetrace.backend.access import authorized
from stagetrace.backend.grpc_calls import HEALTH, Handlers, abort, health
from stagetrace.backend.refusal import UNAUTHENTICATED, Refused
from stagetrace.backend.sockets import listen, refused

if TYPE_CHECKING:
    from stagetrace.backend.options import Listening

_STREAMS: Final = 32  # concurrent calls of one connection
_SETTINGS: Final = (
    # Two back ends on one port would each get half of the requests.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", _STREAMS),
    # gRPC's own decompression has no limit: ours follows in inflate_unnamed.
    ("grpc.per_message_decompression", 0),
    # Of a message that is not read yet, no more than the window of HTTP/2 (64 KiB) is held. Probing would widen it.
    ("grpc.http2.bdp_probe", 0),
    # For the beginning of HTTP/2, the handshake of TLS included.
    ("grpc.server_handshake_timeout_ms", 5_000),
    # A client that has lost its network.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may look for us as often; by default gRPC closes the connections of those that ping every 5 minutes.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Clients open the next connection without a failed call.
    ("grpc.max_connection_idle_ms", 120_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 300_000),
)


@dataclass(frozen=True)
class GrpcPort:
    """One port: its flag and number, what it serves, and what that needs."""

    flag: str
    number: int
    handlers: Handlers
    threads: int
    largest_message: int = 1 << 18


def grpc_server(options: Listening, port: GrpcPort, connections: int, stack: ExitStack) -> tuple[grpc.Server, int]:
    """Return a gRPC server, not yet started, and its port; `stack` stops it. Raise BackendError."""
    # gRPC writes its own lines to stderr where it cannot bind; a plain socket tries first.
    listen(options.host, port.number, port.flag).close()
    settings = [
        *_SETTINGS,
        ("grpc.max_receive_message_length", port.largest_message),
        ("grpc.max_allowed_incoming_connections", connections),
    ]
    pool = stack.enter_context(ThreadPoolExecutor(port.threads))
    server = grpc.server(pool, handlers=[_Methods(port.handlers, options.token)], options=settings)
    stack.callback(lambda: server.stop(None).wait())
    address = f"[{options.host}]:{port.number}" if ":" in options.host else f"{options.host}:{port.number}"
    try:
        if options.tls_cert is not None and options.tls_key is not None:
            pair = (options.tls_key.read_bytes(), options.tls_cert.read_bytes())
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError:
        raise refused(options.host, port.number, port.flag, OSError(errno.EADDRINUSE, "")) from None
    return server, bound


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds the handler of a call. The health check is for everyone; other calls need the token, if there is one."""

    def __init__(self, handlers: Handlers, token: str | None) -> None:
        self._handlers = handlers
        self._health = health(handlers)
        self._token = token

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler; for an unknown method None, which gRPC answers with UNIMPLEMENTED."""
        if handler_call_details.method == HEALTH:
            return self._health
        metadata = handler_call_details.invocation_metadata
        given = next((value for key, value in metadata if key == "authorization"), None)
        if authorized(given, self._token):
            return self._handlers.get(handler_call_details.method)
        return grpc.stream_unary_rpc_method_handler(_refuse)


def _refuse(_messages: object, context: grpc.ServicerContext) -> bytes:
    """Refuse a call before its message is read."""
    abort(
        context,
        Refused(UNAUTHENTICATED, "a token is needed: send the metadata `authorization: Bearer TOKEN`"),
    )
