"""The four listening sockets; a taken or forbidden port is reported before any server starts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final

import grpc

from stagetrace.backend.options import BackendError, Options

_BACKLOG: Final = 4096  # beyond it a client connects a second later; the kernel may have a lower limit
_STREAMS: Final = 64  # concurrent requests of one connection


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Return a socket that listens on `port`, or on a free one for 0. Raise BackendError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise BackendError(f"--host {host}: there is no such address here ({error})\nuse 127.0.0.1") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise _refused(host, port, flag, error) from None
    found.setblocking(False)  # noqa: FBT003 -- takes no name
    return found


def _refused(host: str, port: int, flag: str, error: OSError) -> BackendError:
    if error.errno == errno.EADDRINUSE:
        wrong = "another process listens there"
    elif error.errno == errno.EACCES:
        wrong = "this user may not open it"
    else:
        return BackendError(f"cannot listen on {host}, port {port}: {error.strerror}\ngive another --host")
    return BackendError(
        f"cannot listen on {host}, port {port}: {wrong}\nstop it, or give {flag} PORT (0 takes a free one)"
    )


def grpc_server(
    options: Options, port: int, flag: str, handler: grpc.GenericRpcHandler[bytes, bytes], pool: Executor
) -> tuple[grpc.Server, int]:
    """Return a gRPC server, not yet started, and its port. Raise BackendError."""
    # gRPC writes its own lines to stderr where it cannot bind; a plain socket tries first.
    listen(options.host, port, flag).close()
    settings: Sequence[tuple[str, int]] = [
        # Two back ends on one port would each get half of the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", options.limits.request),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", _STREAMS),
        # gRPC's own decompression has no limit: ours follows in inflate_unnamed.
        ("grpc.per_message_decompression", 0),
    ]
    guarded = _Guard(handler, options.token) if options.token else handler
    # No limit of calls: gRPC would refuse those beyond it for good. A waiting call's message is not read yet.
    server = grpc.server(pool, handlers=[guarded], options=settings)  # type: ignore[arg-type]
    address = f"[{options.host}]:{port}" if ":" in options.host else f"{options.host}:{port}"
    try:
        if options.tls_cert is not None and options.tls_key is not None:
            pair = (options.tls_key.read_bytes(), options.tls_cert.read_bytes())
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError:
        raise _refused(options.host, port, flag, OSError(errno.EADDRINUSE, "")) from None
    return server, bound


class _Guard(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Refuses calls without the token."""

    def __init__(self, inner: grpc.GenericRpcHandler[bytes, bytes], token: str) -> None:
        self._inner = inner
        self._token = token

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Return the inner handler, or one that refuses."""
        from stagetrace.backend.access import authorized

        given = next((value for key, value in details.invocation_metadata if key == "authorization"), None)
        if authorized(given, self._token):
            return self._inner.service(details)
        # A handler of a stream is called before any message is read.
        return grpc.stream_unary_rpc_method_handler(_refuse)


def _refuse(_messages: object, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed: send the metadata `authorization: Bearer TOKEN`")
    raise AssertionError("unreachable: abort raises")
