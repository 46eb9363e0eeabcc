"""Writes of commands on this machine, while a back end has their store open: by a Unix socket of its user alone.

The folder's lock holds its path, for processes that may write there; it has no token and no TLS.
Spans come in as OTLP's own `Export`.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.wrappers_pb2 import Int64Value
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from stagetrace.backend.intake import Intake
from stagetrace.backend.options import Limits
from stagetrace.backend.receiver_grpc import METHOD, Receiver
from stagetrace.errors import StoreError
from stagetrace.store.base import Closing
from stagetrace.store.local import Appended, LocalStore, StoreTaken

if TYPE_CHECKING:
    from stagetrace.backend.counters import Counters
PRUNE: Final = "/stagetrace.Control/Prune"  # Int64Value, a time in ns -> Int64Value, how many spans are gone
_SETTINGS: Final = (
    ("grpc.max_receive_message_length", Limits().request),
    ("grpc.max_send_message_length", -1),
)


class _Control(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """Serves `Export` and `Prune`."""

    def __init__(self, store: LocalStore, counters: Counters) -> None:
        self._store = store
        # Limits of its own, apart from those of the network.
        self._receiver = Receiver(Intake(store, counters, Limits()))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method, or None for one that is not here."""
        if handler_call_details.method == PRUNE:
            return grpc.unary_unary_rpc_method_handler(
                self._prune, Int64Value.FromString, lambda response: response.SerializeToString()
            )
        return self._receiver.service(handler_call_details)

    def _prune(self, before: Int64Value, context: grpc.ServicerContext) -> Int64Value:
        try:
            return Int64Value(value=self._store.prune(before.value))
        except (StoreError, OSError) as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
            raise AssertionError("unreachable: abort raises") from None


def control_server(store: LocalStore, counters: Counters, pool: ThreadPoolExecutor, stack: ExitStack) -> grpc.Server:
    """Return the server, not yet started, and write into the folder's lock where it listens."""
    # Not in the store's own folder: a socket's path may have a hundred characters and no more.
    folder = Path(tempfile.mkdtemp(prefix="stagetrace-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    server = grpc.server(pool, handlers=[_Control(store, counters)], options=_SETTINGS)
    path = folder / "control"
    server.add_insecure_port(f"unix:{path}")
    store.announce(path)
    stack.callback(lambda: server.stop(None).wait())
    return server


class Running(Closing):
    """The store of a folder by way of the process that has it open; writes as `LocalStore` does."""

    def __init__(self, folder: Path, control: Path) -> None:
        """Write to `folder` through the socket `control`."""
        self.folder = folder
        self._channel = grpc.insecure_channel(f"unix:{control}", options=_SETTINGS)

    def append(self, request: bytes) -> Appended:
        """Store one serialized ExportTraceServiceRequest; return when it is on disk. Raise StoreError."""
        response = ExportTraceServiceResponse.FromString(self._call(METHOD, request)).partial_success
        message = ExportTraceServiceRequest.FromString(request)
        sent = sum(len(scope.spans) for one in message.resource_spans for scope in one.scope_spans)
        rejected = response.rejected_spans
        return Appended(sent - rejected, rejected, response.error_message or None)

    def prune(self, before_ns: int) -> int:
        """Drop all spans that started before; return how many. Raise StoreError."""
        return Int64Value.FromString(self._call(PRUNE, Int64Value(value=before_ns).SerializeToString())).value

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: str, request: bytes) -> bytes:
        call = self._channel.unary_unary(method, request_serializer=None, response_deserializer=None)
        try:
            response: bytes = call(request)
        except grpc.RpcError as error:
            details = error.details() or error.code().name
            if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
                raise StoreError(
                    f"the process that has the store in {self.folder} open has ended or does not respond ({details})\n"
                    "acknowledged spans are stored; repeat the command: spans that are stored already count once"
                ) from None
            raise StoreError(details) from None
        return response


def open_writer(folder: Path) -> LocalStore | Running:
    """Open the local store in `folder`, or go through the `stagetrace up` that has it open.

    Raise StoreError if neither can be.
    """
    try:
        return LocalStore.open(folder)
    except StoreTaken as taken:
        if taken.control is None:
            raise
        return Running(folder, taken.control)
