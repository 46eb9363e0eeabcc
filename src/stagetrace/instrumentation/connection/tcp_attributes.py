"""TCP attributes of a connection: at the end of a response, and when another service has responded to a call."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import switch
from stagetrace.instrumentation.connection.lookup import note_error, socket_of, transport_of
from stagetrace.semconv import NETWORK_RETRANSMITS, NETWORK_RTT_MS, NETWORK_UNACKED_BYTES
from stagetrace.sources import tcp_info
from stagetrace.sources.base import SLOW_NS

if TYPE_CHECKING:
    from collections.abc import Callable

_switch = switch(__name__)
_source = switch(tcp_info.__name__)
_read_by = tcp_info.SOURCE
_is_used = _read_by.is_used


def _is_off() -> bool:
    return not _is_used or _source.off or _switch.off or (_read_by.paused_until > 0 and _read_by.is_paused())


def add_asgi(connection: Any, attributes: dict[str, Any], is_now: bool) -> None:
    """Add the attributes of an ASGI connection, the object that `send` is a method of. Never raises, like all here.

    Bytes in the server's own buffer count as not acknowledged, too. `is_now`: the server has passed on the last byte in
    the current step of the event loop.
    """
    if _is_off():
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
    if _is_off():
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
    if _is_off():
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
        _read_by.took(min(took, perf_counter_ns() - began))
    return state
