"""The connection of a request: its socket, its wait in the kernel, its network."""

from __future__ import annotations

import errno
from contextvars import ContextVar
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.guard import guarded, switch
from stagetrace.request.loop_blockers import blocker
from stagetrace.request.serving_process import crowded_waits
from stagetrace.semconv import (
    NETWORK_RETRANSMITS,
    NETWORK_RTT_MS,
    NETWORK_UNACKED_BYTES,
    QUEUE,
    QUEUE_BLOCKED_BY,
    QUEUE_REASON,
)
from stagetrace.sources import socket_wait, tcp_info
from stagetrace.sources.base import SLOW_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.request.request import Request
    from stagetrace.sources.base import Source

# --- Where servers keep the connection of a request.
#
# A server of ASGI passes a `send` to the application that is a method of the object with the connection. Some servers
# of WSGI put the socket into the environment.

SOCKETS: Final = ("gunicorn.socket", "werkzeug.socket")
# The errors of a Unix socket.
_NO_TCP: Final = (errno.EOPNOTSUPP, errno.ENOPROTOOPT)


def transport_of(connection: Any) -> Any:
    """Return the asyncio transport of the object that an ASGI `send` is a method of; None if it cannot be reached."""
    found = getattr(connection, "transport", None)  # uvicorn
    if found is None and type(connection).__module__.startswith("hypercorn."):
        protocol = getattr(connection.send, "__self__", None)
        server = getattr(getattr(protocol, "send", None), "__self__", None)
        found = getattr(getattr(server, "writer", None), "transport", None)  # none with trio or QUIC
    return found


def socket_of(environ: Any) -> Any:
    """Return the socket of a WSGI request; None if its server does not give it away."""
    for key in SOCKETS:
        if key in environ:
            return environ[key]
    return None


@guarded
def note_error(source: Source, error: Exception, is_closed: Callable[[], bool]) -> None:
    """Count an error of a source, unless the socket is a Unix socket, or the client has disconnected."""
    if getattr(error, "errno", None) in _NO_TCP:
        source.silent = "requests came by a Unix socket, for which the kernel has no readings"
    elif not is_closed():
        source.failed(error)


if TYPE_CHECKING:
    # activity, attributes, begin, end (0: when the application is called), in nanoseconds since the epoch
    Wait = tuple[str, Mapping[str, Any] | None, int, int]


# --- What a WSGI server knows of a request before it calls the application.
#
# Programs that serve nothing import this too, with the patches of the servers: it imports no OpenTelemetry.


class Arrival(NamedTuple):
    """When a request arrived, in nanoseconds since the epoch, and what it has waited for since then."""

    start: int
    waits: tuple[Wait, ...]


# Set by a server's patch, and reset when the request begins.
arriving: ContextVar[Arrival | None] = ContextVar("stagetrace.arriving", default=None)


# --- How long a request waited in its socket before its server read it, and which request blocked the server meanwhile.
#
# While one request's work blocks the event loop, or all workers are busy, other requests wait in the kernel. No span
# that begins in Python contains that time.

SOCKET: Final = "socket"
REASON: Final = {QUEUE_REASON: SOCKET}

# --- TCP attributes of a connection: at the end of a response, and when another service has responded to a call.

_switch = switch(__name__)
_source = switch(socket_wait.__name__)
_read_by = socket_wait.SOURCE
_is_used = _read_by.is_used


def _is_off() -> bool:
    return not _is_used or _source.off or _switch.off or (_read_by.paused_until > 0 and _read_by.is_paused())


def waited_ns(connection: Any) -> int:
    """Return how long the data that an ASGI connection received last waited in its socket, in ns; 0 if unknown.

    `connection` is the object that `send` is a method of. Never raises.
    """
    if not _is_used or _source.off or _switch.off or (_read_by.paused_until > 0 and _read_by.is_paused()):
        return 0  # `_is_off`, which each request asks
    transport = getattr(connection, "transport", None)
    if transport is None and (connection is None or (transport := transport_of(connection)) is None):
        return 0
    try:
        return _read_wait_ns(transport.get_extra_info("socket"))
    except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
        note_error(socket_wait.SOURCE, error, transport.is_closing)
        return 0


def time_in_kernel_ns(connection: Any) -> int:
    """Return how long the data that a socket received last waited in the kernel, in ns; 0 if unknown. Never raises."""
    if connection is None or _is_off():
        return 0
    try:
        return _read_wait_ns(connection)
    except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
        note_error(socket_wait.SOURCE, error, lambda: connection.fileno() < 0)
        return 0


def arrived(environ: Any, arrival: Arrival | None, now: int) -> Arrival | None:
    """Return the arrival of a WSGI request, with its wait in the socket if there was one; `now` in ns since the epoch.

    `arrival` is what the server's patch knows: its waits begin when the server has accepted the connection.
    """
    if _is_off():
        return arrival
    connection = socket_of(environ)
    if connection is None:
        return arrival
    try:
        waited = _read_wait_ns(connection)
        if not waited:
            return arrival
        start, end = now - waited, now if arrival is None else arrival.start
        if end - start < socket_wait.TICK_NS:
            return arrival  # the server's patch knows the same wait
        wait = (QUEUE, _attributes(start, end), start, end)
        return Arrival(start, (wait,) if arrival is None else (wait, *arrival.waits))
    except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
        note_error(socket_wait.SOURCE, error, lambda: connection.fileno() < 0)
        return arrival


def _read_wait_ns(connection: Any) -> int:
    began = perf_counter_ns()
    waited = socket_wait.waited_ms(connection)
    took = perf_counter_ns() - began
    if took > SLOW_NS:
        began = perf_counter_ns()
        socket_wait.waited_ms(connection)
        # The thread may have lost its CPU in the middle of the one, hardly of both.
        _read_by.took(min(took, perf_counter_ns() - began))
    return waited * 1_000_000


@guarded
def show(request: Request, start: int, end: int) -> None:
    """Mark [start, end), with which the request begins, as the wait in the socket."""
    request.enter(QUEUE, _attributes(start, end), at=start)
    request.leave(QUEUE, at=end)


def _attributes(start: int, end: int) -> dict[str, str]:
    crowded_waits[SOCKET] = crowded_waits.get(SOCKET, 0) + 1
    blocked_by = blocker(start, end)
    return {**REASON, QUEUE_BLOCKED_BY: blocked_by} if blocked_by else REASON


_own_switch = switch(__name__)
_wire_switch = switch(tcp_info.__name__)
_wire = tcp_info.SOURCE
_is_wire_used = _wire.is_used


def _is_wire_off() -> bool:
    return not _is_wire_used or _wire_switch.off or _own_switch.off or (_wire.paused_until > 0 and _wire.is_paused())


def add_asgi(connection: Any, attributes: dict[str, Any], is_now: bool) -> None:
    """Add the attributes of an ASGI connection, the object that `send` is a method of. Never raises, like all here.

    Bytes in the server's own buffer count as not acknowledged, too. `is_now`: the server has passed on the last byte in
    the current step of the event loop.
    """
    if _is_wire_off():
        return
    transport = None
    try:
        transport = transport_of(connection)
        # uvloop's socket keeps its number after it was closed, and another connection may have that number by then.
        if transport is None or (not is_now and transport.is_closing()):
            return
        state = _read(transport.get_extra_info("socket"))
        _add(attributes, state, transport.get_write_buffer_size())
    except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
        note_error(tcp_info.SOURCE, error, lambda: transport is not None and transport.is_closing())


def unacked(connection: Any) -> int | None:
    """Return how many bytes the peer of an ASGI connection has not acknowledged; None if that is unknown."""
    attributes: dict[str, Any] = {}
    add_asgi(connection, attributes, is_now=False)
    return attributes.get(NETWORK_UNACKED_BYTES, 0) if attributes else None


def add_wsgi(environ: Any, attributes: dict[str, Any]) -> None:
    """Add the attributes of the connection of a WSGI request."""
    if _is_wire_off():
        return
    connection = None
    try:
        connection = socket_of(environ)
        if connection is not None:
            _add(attributes, _read(connection), 0)
    except Exception as error:  # noqa: BLE001
        note_error(tcp_info.SOURCE, error, lambda: connection is not None and connection.fileno() < 0)


def add_call(find: Callable[[], Any], attributes: dict[str, Any]) -> None:
    """Add the attributes of the connection of a call to another service; `find` returns its socket, or None."""
    if _is_wire_off():
        return
    connection = None
    try:
        connection = find()
        if connection is not None:
            _add(attributes, _read(connection))
    except Exception as error:  # noqa: BLE001
        note_error(tcp_info.SOURCE, error, lambda: connection is not None and connection.fileno() < 0)


def _add(attributes: dict[str, Any], state: tcp_info.ConnectionState, buffered: int | None = None) -> None:
    rtt_us, retransmits, unacked = state
    attributes[NETWORK_RTT_MS] = rtt_us / 1e3
    if retransmits:
        attributes[NETWORK_RETRANSMITS] = retransmits
    if buffered is not None and unacked is not None and (buffered or unacked):
        attributes[NETWORK_UNACKED_BYTES] = unacked + buffered


def _read(connection: Any) -> tcp_info.ConnectionState:
    began = perf_counter_ns()
    state = tcp_info.read_connection(connection)
    took = perf_counter_ns() - began
    if took > SLOW_NS:
        began = perf_counter_ns()
        tcp_info.read_connection(connection)
        # The thread may have lost its CPU in the middle of the one, hardly of both.
        _wire.took(min(took, perf_counter_ns() - began))
    return state
