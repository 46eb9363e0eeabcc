"""One gRPC port: its server, TLS and the token, calls that may wait for clients, a status for each failure."""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue

from stagetrace.backend.ports import is_authorized, listen, port_error
from stagetrace.backend.refusal import (
    ABANDONED,
    BUSY,
    MALFORMED,
    METHOD,
    NOT_FOUND,
    SLOW,
    UNAUTHENTICATED,
    Refused,
    status,
)

if TYPE_CHECKING:
    from stagetrace.backend.options import Listening

# --- A limit of calls that may wait for their clients: where others need a slot, the slowest client loses its own.
#
# `grpc.aio` costs 0.6 ms of CPU more a request, cannot cancel a call from the server's side, and leaks memory for each
# call that a client cancels (grpc issue 43360). A limit for each peer would stop the legal ones behind a proxy or NAT.

_LONGEST_WAIT_S: Final = 10.0  # for a slot
_LONG_S: Final = 3600.0


class Slot:
    """The slot of one call. `lost` is set when the call loses it; the call is then cancelled."""

    def __init__(self, slots: Slots, context: grpc.ServicerContext) -> None:
        self._slots = slots
        self.context = context
        self.lost: Refused | None = None
        self.waits_since: float | None = None
        self.waits_until = 0.0

    @contextmanager
    def client(self, within_s: float) -> Iterator[None]:
        """Mark a block that waits for the client: the slot is lost after `within_s`, or when another call needs it.

        Raise Refused at the end of the block where it was.
        """
        self._slots.begin_wait(self, within_s)
        try:
            yield
        finally:
            self._slots.end_wait(self)
        if self.lost is not None:
            raise self.lost


class _Waiter:
    def __init__(self, peer: str, number: int) -> None:
        self.peer = peer
        self.number = number
        self.turn = threading.Event()
        self.refused: Refused | None = None


class Slots:
    """`count` calls at one time; up to `most_waiting` wait.

    First come the calls of connections that have few: by connection and not by address, since on one machine all
    clients have the same.
    `_lock` guards everything; a thread ends calls whose clients are too slow.
    """

    def __init__(self, count: int, most_waiting: int, patience_s: float = _LONGEST_WAIT_S) -> None:
        self.most = count + most_waiting
        self._count = count
        self._most_waiting = most_waiting
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._held: set[Slot] = set()
        self._granted = 0  # slots that are held, or given to a waiter that does not run yet
        self._waiting: list[_Waiter] = []
        self._number = 0
        self._calls: Counter[str] = Counter()  # of each connection, waiting or with a slot
        self._look = threading.Event()
        self._next_look = 0.0
        self._watch: threading.Thread | None = None

    @contextmanager
    def hold(self, context: grpc.ServicerContext) -> Iterator[Slot]:
        """Yield a slot when there is one. Raise Refused where too many calls wait, or this one waited too long."""
        peer = context.peer()
        self._turn(context, peer)
        slot = Slot(self, context)
        with self._lock:
            self._held.add(slot)
        try:
            yield slot
        finally:
            with self._lock:
                self._held.discard(slot)
                self._leave(peer)
                self._granted -= 1
                self._grant()

    def begin_wait(self, slot: Slot, within_s: float) -> None:
        """Note that a slot's client keeps it waiting from now on."""
        with self._lock:
            slot.waits_since = time.monotonic()
            slot.waits_until = slot.waits_since + within_s
            self._look_at(slot.waits_since + self._patience_s if self._waiting else slot.waits_until)

    def end_wait(self, slot: Slot) -> None:
        """Note that it does not any more."""
        with self._lock:
            slot.waits_since = None

    def _turn(self, context: grpc.ServicerContext, peer: str) -> None:
        """Return when the call has a slot. Raise Refused."""
        with self._lock:
            self._calls[peer] += 1
            if self._granted < self._count and not self._waiting:
                self._granted += 1
                return
            self._number += 1
            waiter = _Waiter(peer, self._number)
            self._waiting.append(waiter)
            if len(self._waiting) > self._most_waiting:
                self._refuse(max(self._waiting, key=self._order), _too_many())
            self._look_at(time.monotonic())
        disconnected = partial(self._give_up, waiter, Refused(ABANDONED, "the client disconnected"))
        if not context.add_callback(disconnected):
            disconnected()
        if not waiter.turn.wait(_LONGEST_WAIT_S):
            self._give_up(waiter, _too_many())
        if waiter.refused is not None:
            raise waiter.refused

    def _give_up(self, waiter: _Waiter, why: Refused) -> None:
        with self._lock:
            self._refuse(waiter, why)

    def _leave(self, peer: str) -> None:
        self._calls[peer] -= 1
        if not self._calls[peer]:
            del self._calls[peer]

    def _refuse(self, waiter: _Waiter, why: Refused) -> None:
        if waiter in self._waiting:  # otherwise it has its slot
            self._waiting.remove(waiter)
            self._leave(waiter.peer)
            waiter.refused = why
            waiter.turn.set()

    def _grant(self) -> None:
        while self._waiting and self._granted < self._count:
            first = min(self._waiting, key=self._order)
            self._waiting.remove(first)
            self._granted += 1
            first.turn.set()

    def _order(self, waiter: _Waiter) -> tuple[int, int]:
        return self._calls[waiter.peer], waiter.number

    def _look_at(self, moment: float) -> None:
        """Have the thread look for calls to end then, or before."""
        if self._watch is None:
            self._watch = threading.Thread(target=self._end_slow_calls, name="stagetrace-slots", daemon=True)
            self._watch.start()
        if moment < self._next_look:
            self._next_look = moment
            self._look.set()

    def _end_slow_calls(self) -> None:
        while True:
            with self._lock:
                lost = self._lost_now(time.monotonic())
                delay = self._next_look - time.monotonic()
            for slot in lost:
                slot.context.cancel()  # type: ignore[no-untyped-call]
            self._look.wait(max(0.0, delay))
            self._look.clear()

    def _lost_now(self, now: float) -> list[Slot]:
        """Mark the slots that are lost now and return them; set the time of the next look."""
        self._next_look = now + _LONG_S
        slow = [
            (slot.waits_since + self._patience_s, id(slot), slot)
            for slot in self._held
            if slot.waits_since is not None and slot.lost is None
        ]
        needed = len(self._waiting) - sum(slot.lost is not None for slot in self._held)
        lost = []
        for number, (patient_until, _, slot) in enumerate(sorted(slow)):
            until = min(slot.waits_until, patient_until) if number < needed else slot.waits_until
            if until <= now:
                is_late = slot.waits_until <= now
                slot.lost = Refused(SLOW, "the client took too long") if is_late else Refused(BUSY, _TAKEN)
                lost.append(slot)
            else:
                self._next_look = min(self._next_look, until)
        return lost


_TAKEN: Final = "others wait and this client is slow; send this request again"


def _too_many() -> Refused:
    return Refused(BUSY, "too many requests at this moment; send this one again")


# --- What all calls over gRPC share: one message from the client, read under a limit, and a status for each failure.
#
# To gRPC each method takes a stream. It then reads a message when we ask for it, and not before.

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


# --- The server of one gRPC port: its limits, TLS and the token.

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
        raise port_error(options.host, port.number, port.flag, OSError(errno.EADDRINUSE, "")) from None
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
        if is_authorized(given, self._token):
            return self._handlers.get(handler_call_details.method)
        return grpc.stream_unary_rpc_method_handler(_refuse)


def _refuse(_messages: object, context: grpc.ServicerContext) -> bytes:
    """Refuse a call before its message is read."""
    abort(
        context,
        Refused(
            UNAUTHENTICATED,
            "no token was sent, and one is needed in the metadata `authorization`, after the word Bearer",
        ),
    )
