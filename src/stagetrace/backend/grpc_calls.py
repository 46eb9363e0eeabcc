"""What all calls over gRPC share: one message from the client, read under a limit, and a status for each failure.

To gRPC each method takes a stream. It then reads a message when we ask for it, and not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue

from stagetrace.backend.refusal import ABANDONED, MALFORMED, METHOD, NOT_FOUND, Refused, status
from stagetrace.backend.slots import Slot, Slots

Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
REFUSING: Final = 32  # threads beside those of calls that wait or work, so that others are refused at once
HEALTH: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
_MESSAGE_S: Final = 10.0  # for the message of a call to arrive


def read_message(messages: Iterator[bytes], slot: Slot) -> bytes:
    """Return the one message of a call. Raise Refused where there is none or a second one, or the slot was lost."""
    with slot.client(_MESSAGE_S):
        try:
            message = next(messages, None)
            is_one = message is not None and next(messages, None) is None
        except grpc.RpcError:  # the call was cancelled
            raise slot.lost or Refused(ABANDONED, "the client disconnected") from None
    if message is None or not is_one:
        raise Refused(METHOD, "this method takes exactly one message")
    return message


def abort(context: grpc.ServicerContext, refused: Refused) -> NoReturn:
    """End the call with the status of `refused`, and google.rpc.Status in the trailers."""
    context.set_trailing_metadata((("grpc-status-details-bin", status(refused).SerializeToString()),))
    context.abort(CODES[refused.kind.code], refused.message)
    raise AssertionError("unreachable: abort raises")


def health(handlers: Handlers) -> grpc.RpcMethodHandler[Any, Any]:
    """Return the handler of `grpc.health.v1.Health/Check` on a port that serves `handlers`. It has its own threads."""
    names = {"", *(path.split("/")[1] for path in handlers)}
    slots = Slots(4, 32, patience_s=0.2)

    def check(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            with slots.hold(context) as slot:
                message = read_message(messages, slot)
            # HealthCheckRequest has one field, number 1, a string: so has StringValue.
            if StringValue.FromString(message).value not in names:
                raise Refused(NOT_FOUND, "there is no such service here")  # noqa: TRY301
        except DecodeError:
            abort(context, Refused(MALFORMED, "this is no HealthCheckRequest"))
        except Refused as refused:
            abort(context, refused)
        return _SERVING

    check.experimental_thread_pool = ThreadPoolExecutor(slots.most + REFUSING)  # type: ignore[attr-defined]
    return grpc.stream_unary_rpc_method_handler(check)
