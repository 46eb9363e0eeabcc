"""What an entry span says of an RPC, and one RPC from its arrival to its end, whichever gRPC server it is.

Names are those of the semantic conventions from 1.39 on: the full method in `rpc.method`, the status code as a word.
"""

from __future__ import annotations

import functools
import socket
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import grpc

from stagetrace import settings
from stagetrace.guard import guarded, guarded_end
from stagetrace.otlp.encode import Block
from stagetrace.protocols import http_headers
from stagetrace.protocols.base import EXCLUDED_SERVICES
from stagetrace.protocols.http_headers import RECORDED, StageReport, header_attributes
from stagetrace.request import limits
from stagetrace.request.chunk_times import Stream
from stagetrace.request.context import here, open_entry
from stagetrace.request.current import current
from stagetrace.request.limits import shorten
from stagetrace.request.request import Request
from stagetrace.request.working import wait
from stagetrace.runtime.runtime import runtime
from stagetrace.semconv import (
    NETWORK_MESSAGES_RECEIVED,
    NETWORK_RECEIVE,
    NETWORK_RECEIVED_BYTES,
    NETWORK_SEND,
    NETWORK_SENT_BYTES,
    SLA_DEADLINE_REMAINING_MS,
)
from stagetrace.system.bounded import BoundedCache
from stagetrace.system.sigterm import awaited
from stagetrace.system.threads import sleep
from stagetrace.tracing.propagation import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stagetrace.request.own_span import Recorder

if TYPE_CHECKING:
    Metadata = Iterable[tuple[str, str | bytes]]

CANCELLED = "cancelled"
LEAST_BUFFER = 16_384  # of a stream, or its connection, before it holds its writer back
MAX_CACHED = 4_096
MAX_NAME = 256
REASON = "grpc_pool"
OTHER = "_OTHER"  # the method, where the caller asked for one that there is not
WILDCARDS = ("", "0.0.0.0", "::", "*")  # noqa: S104 -- compared with, not listened on
ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
CODES: dict[Any, str] = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0], code.name)}
# The caller cancels as its own deadline passes: the wire's delay before ours, and gRPC rounds ours up by 1 %.
SLACK_S = 0.02
SLACK = 0.01
FOREVER_S = 1e8  # a deadline further away than this is none

# After a response was handed over, its RPC ends within this, however busy the machine is.
ENDS_WITHIN_S = 1.0
LOOKS_EVERY_S = 0.005
on_their_way: set[Rpc] = set()  # whose response is handed over: they end in a moment


def wait_for_those_on_their_way() -> None:
    """Let all end whose response is out, before the process does."""
    until = monotonic() + ENDS_WITHIN_S
    while on_their_way and monotonic() < until:
        sleep(LOOKS_EVERY_S)


awaited.append(wait_for_those_on_their_way)


class Server:
    """What is known of one server: where it listens, its pool of threads, and which services it leaves out."""

    def __init__(self, pool: Any) -> None:
        self.pools = (getattr(pool, "_threads", ()),)
        self._pool = getattr(pool, "_work_queue", None)
        self._size = getattr(pool, "_max_workers", None)
        self._alone = wait(REASON, self._size, 0)  # a wait in which nobody else waits
        self._address: dict[str, Any] = {}
        # What `block` has returned; to call a function with a cache would cost each RPC more than to look here.
        self.blocks: BoundedCache[tuple[str, str | None], Block | None] = BoundedCache(MAX_CACHED)

    def listen(self, address: str, port: int) -> None:
        """Note an address as it was given to add_*_port, and the port that came of it."""
        if address.startswith("unix"):
            where: dict[str, Any] = {"server.address": address.partition(":")[2]}
        else:
            host = address.rpartition(":")[0].rpartition("/")[2].strip("[]")
            where = {"server.address": socket.gethostname() if host in WILDCARDS else host, "server.port": port}
        if self._address:  # several: which one an RPC came to is not told
            where = {key: value for key, value in where.items() if self._address.get(key) == value}
        self._address = where
        self.blocks.clear()

    def block(self, method: str, agent: str | None) -> Block | None:
        """Work out what all RPCs of one method and kind of client have in common; None if they are not recorded."""
        block = self.blocks[method, agent] = None if _is_excluded(method) else self._make(method.lstrip("/"), agent)
        return block

    def other(self, block: Block) -> Block:
        """Return `block` as it is where there is no such method."""
        agent = block.attributes.get("user_agent.original")
        return self.blocks.get((OTHER, agent)) or self.block(OTHER, agent) or block

    def _make(self, method: str, agent: str | None) -> Block:
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, **self._address}
        if agent is not None:
            attributes["user_agent.original"] = agent
        return Block(attributes)

    def wait(self) -> Mapping[str, Any]:
        """Return the attributes of a wait for a thread that begins now."""
        waiters = self._pool.qsize() if self._pool is not None else 0
        return wait(REASON, self._size, waiters) if waiters else self._alone


def _is_excluded(method: str) -> bool:
    service = method.lstrip("/").rpartition("/")[0]
    return service.startswith(EXCLUDED_SERVICES) or service in _excluded_services()


@functools.cache
def _excluded_services() -> frozenset[str]:
    """Return what OTEL_PYTHON_GRPC_EXCLUDED_SERVICES leaves out, read as opentelemetry-instrumentation-grpc does."""
    return frozenset(settings.EXCLUDED_SERVICES.read())


def read_metadata(metadata: Metadata) -> Mapping[str, Any]:
    """Return the context that the metadata carries."""
    carrier: dict[str, list[str]] = {}
    for key, value in metadata:
        if type(value) is str:
            carrier.setdefault(key, []).append(value)
    return here.extract(carrier)


def metadata_value(metadata: Metadata, name: str) -> str | None:
    """Return the value of metadata, its name in lower case; None if there is none."""
    return ", ".join(value for key, value in metadata if key == name and type(value) is str) or None


@functools.lru_cache(MAX_CACHED)
def status_block(code: str) -> Block:
    """Return the attributes of a response with this status code."""
    attributes = {"rpc.response.status_code": code}
    if code in ERRORS:
        attributes["error.type"] = code
    return Block(attributes)


@functools.lru_cache(MAX_CACHED)
def peer_block(peer: str | None) -> Block:
    """Return the attributes of the other end of a connection, as gRPC names it: `ipv4:127.0.0.1:57284`.

    There are none if it is not to be recorded.
    """
    if not settings.RECORD_CLIENT.read():
        return Block({})
    kind, _, address = unquote((peer or "").partition(",")[0]).partition(":")
    attributes: dict[str, Any] = {}
    if kind in ("ipv4", "ipv6"):
        host, _, port = address.rpartition(":")
        attributes = {"client.address": host.strip("[]"), "client.port": int(port)}
    elif kind == "unix" and address:
        attributes = {"client.address": address}
    return Block(attributes)


R = TypeVar("R", bound="Rpc")


class Rpc(Request):
    """One RPC, from its arrival to its end, and the owner of its span.

    It is its own handler: gRPC reads attributes that have no `_`.
    """

    protocol = "grpc"
    response_streaming = False
    _takes_stream = False  # the handler, of requests
    _is_broken = False  # a message could not be deserialised or serialised
    _peer: str | None = None
    _remaining_s: float | None = None  # of the caller's deadline, on arrival
    _asked_for = ""  # the method, where there is no such
    stage_report: StageReport | None = None  # where the caller is to have one
    received_bytes = 0  # of all messages
    received = 0  # messages of a stream
    sent_bytes = 0  # of a response that is no stream
    chunk_size: int | None = None  # bytes of a stream's message that is on its way out
    _behaviour: Any  # the handler's own parts
    _deserializer: Any
    _serializer: Any
    _ended: tuple[Block, dict[str, Any]]  # with which status, and what is known since

    def __init__(
        self,
        server: Server,
        block: Block,
        metadata: Metadata,
        parent_context: Mapping[str, Any],
        started: int,
        recorder: Recorder | None,
    ) -> None:
        super().__init__(start=started)
        self._server = server
        self.block = block
        self._metadata = metadata
        name: Any = block.attributes["rpc.method"]
        # The context is that of this RPC alone, by gRPC's care in threads, and as a task's in asyncio.
        current.set(self)
        self.route = name
        open_entry(self, name, parent_context, recorder)
        if here.has_otel:
            here.attach(here.around(self, parent_context))
        if recorder is not None and recorder.processor.has_others:
            recorder.begin(self)

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if there is no such header."""
        return metadata_value(self._metadata, name)

    def deadline_ns(self) -> int | None:
        """Return what was left of the caller's deadline on arrival; None where it has set none."""
        return None if self._remaining_s is None else int(self._remaining_s * 1e9)

    def known_attributes(self) -> dict[str, Any]:
        """Return all that is known as the RPC arrives."""
        return dict(self.block.attributes)

    def late_attributes(self) -> dict[str, Any]:
        """Return what is known when the RPC has ended, and was not before."""
        status, attributes = self._ended
        known = self.block.attributes if self._asked_for else {}
        return {**known, **status.attributes, **peer_block(self._peer).attributes, **attributes}

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        """Return the attributes of our own entry span: blocks, that of the peer, and the rest."""
        status, attributes = self._ended
        attributes.update(self.response(self.started))
        return [self.block, status], peer_block(self._peer), attributes

    def _go_out(self) -> None:
        """Take this out of its context, which gRPC keeps for ever where a message could not be deserialised."""
        current.set(None)
        here.attach(NO_CONTEXT)

    def _raised(self, error: BaseException, code: Any) -> None:
        """Note an exception that the handler let through, which is no abort; `code` is what the caller is told."""
        self.record_error(error, fails=CODES.get(code, "UNKNOWN") in ERRORS)

    def _aborted(self, code: Any, details: Any) -> None:
        """Note that the handler aborts."""
        if details and CODES.get(code, "UNKNOWN") in ERRORS:
            here.set_error(self.entry_span, limits.details(details))

    def _expires_in(self, left_s: float) -> None:
        """Note what is left now of the caller's deadline."""
        if left_s < FOREVER_S:
            self._remaining_s = max(left_s + (time_ns() - self.started) / 1e9, 0.0)

    def fits_buffer(self, activity: str) -> bool:
        """Return whether so few bytes passed in all sends or receives that none waited for the caller."""
        if activity == NETWORK_RECEIVE:
            return not self.received and 0 < self.received_bytes < LEAST_BUFFER  # no stream: it comes with the headers
        stream = self.stream
        sent = self.sent_bytes + (self.chunk_size or 0) + (0 if stream is None else stream.size)
        return activity == NETWORK_SEND and sent < LEAST_BUFFER

    def request_deserializer(self, message: bytes) -> Any:
        """Deserialise a message."""
        self._count_received(message)
        return self._converted(self._deserializer, message)

    @guarded_end
    def _count_received(self, message: bytes) -> None:
        """Count a message, whose arrival ends a `network.receive`."""
        self.leave(NETWORK_RECEIVE)
        self.received_bytes += len(message)
        if self._takes_stream:
            self.received += 1

    def response_serializer(self, answer: Any) -> Any:
        """Serialise a response."""
        message = self._converted(self._serializer, answer)
        self._count_sent(message)
        return message

    @guarded
    def _count_sent(self, message: Any) -> None:
        """Count a message of the response, which goes out next."""
        size = len(message) if type(message) is bytes else 0
        if self.response_streaming:
            self.chunk_size = size
        else:
            self.sent_bytes = size
            if self.stage_report is not None:
                self.stage_report.renew()

    def _converted(self, convert: Any, message: Any) -> Any:
        """Return what a serialiser or deserialiser makes of a message; without one, the message."""
        if convert is None:
            return message
        try:
            return convert(message)
        except BaseException:
            self._is_broken = True
            raise

    @guarded
    def begin_receiving(self) -> None:
        """Note that the handler waits for a message of a stream."""
        self.enter(NETWORK_RECEIVE)

    @guarded_end
    def end_receiving(self) -> None:
        """Note that it waits no longer: where no deserialiser has ended this, the stream has ended."""
        self.leave(NETWORK_RECEIVE)

    def end_chunk(self) -> None:
        """Count the message of a stream that was on its way, if there is one: gRPC has taken it."""
        size = self.chunk_size
        if size is not None:
            self.chunk_size = None
            if self.stream is None:
                self.stream = Stream(NETWORK_SENT_BYTES)
            self._add_chunk(self.stream, time_ns(), size)

    def _add_chunk(self, stream: Stream, now: int, size: int) -> None:
        stream.add(now, size)

    @guarded_end
    def response_complete(self) -> None:
        """Note that the response is complete, and only has to be sent."""
        on_their_way.add(self)
        if self.stage_report is not None:
            self.stage_report.renew()

    def conclude(self, code: Any, *, cancelled: bool) -> None:
        """End with a status code, of any of gRPC's types; `cancelled` if the caller waits no longer."""
        ended_at = time_ns()
        remaining_s, word = self._remaining_s, CODES.get(code, "UNKNOWN")
        attributes: dict[str, Any] = {}
        if self.received_bytes:
            attributes[NETWORK_RECEIVED_BYTES] = self.received_bytes
        if self.sent_bytes:
            attributes[NETWORK_SENT_BYTES] = self.sent_bytes
        if self.received:
            attributes[NETWORK_MESSAGES_RECEIVED] = self.received
        if cancelled:
            word, self.disconnect = "CANCELLED", CANCELLED
        if remaining_s is not None:
            attributes[SLA_DEADLINE_REMAINING_MS] = remaining_s * 1e3
            left_s = remaining_s - (ended_at - self.started) / 1e9
            if left_s <= (max(SLACK_S, SLACK * remaining_s) if cancelled else 0):
                word, self.disconnect = "DEADLINE_EXCEEDED", CANCELLED  # as gRPC does then
        if self._asked_for:
            attributes["rpc.method_original"] = self._asked_for[:MAX_NAME]
        try:
            if RECORDED:
                attributes.update(header_attributes(self.header))
                shorten(attributes)
            self._ended = status_block(word), attributes
            self.failed = word in ERRORS
            if self._asked_for:
                self.route = str(self.block.attributes["rpc.method"])
                self.entry_span.update_name(self.route)
            self.end_entry(ended_at)
        finally:
            on_their_way.discard(self)
            self.stage_report = None
            self.release()

    @guarded_end
    def exclude(self) -> None:
        """Record nothing of it; in the context that it came in to."""
        current.set(None)
        here.attach(self.parent_context)
        self.discard()
        self.release()

    def has_no_method(self) -> None:
        """Note that the server has no such method: its name is the caller's invention."""
        self._asked_for = str(self.block.attributes["rpc.method"])
        self.block = self._server.other(self.block)


def _looked_at(metadata: Metadata, fields: frozenset[str]) -> tuple[str | None, object, bool]:
    """Return the user agent, the value by which our clients show themselves, and whether there is any of `fields`."""
    carries = not fields
    agent: str | bytes | None = None
    caller = None
    for key, value in metadata:
        if key == "user-agent":
            agent = value
        elif key == http_headers.CALLER:
            caller = value
        elif key in fields:
            carries = True
    return agent if type(agent) is str and len(agent) <= MAX_NAME else None, caller, carries


def arrive(server: Server, details: Any, kind: type[R]) -> R | None:
    """Return the RPC that arrives with gRPC's `details`, of this class; None if it is not recorded."""
    started = time_ns()
    context = here.get_current()
    if context and here.is_suppressed(context, http=False):
        return None
    metadata = details.invocation_metadata or ()
    agent, caller, carries = _looked_at(metadata, here.fields)
    parent_context = read_metadata(metadata) if carries else NO_CONTEXT
    try:
        block = server.blocks[details.method, agent]
    except KeyError:
        block = server.block(details.method, agent)
    if block is None:
        return None
    recorder = here.recorder
    if recorder is None and not (runtime.ready and here.has_provider):
        return None
    rpc = kind(server, block, metadata, parent_context, started, recorder)
    if http_headers.is_for(caller):
        rpc.stage_report = StageReport(rpc)
    return rpc
