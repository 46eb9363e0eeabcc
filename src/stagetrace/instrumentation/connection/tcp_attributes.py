"""The wire as it is at the end of an answer, and as a call to another service is answered."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import switch
from stagetrace.instrumentation.connection.lookup import look_into, socket_of, transport_of
from stagetrace.semconv import NETWORK_RETRANSMITS, NETWORK_RTT_MS, NETWORK_UNACKED_BYTES
from stagetrace.sources import tcp_info as wire
from stagetrace.sources.base import SLOW_NS

if TYPE_CHECKING:
    from collections.abc import Callable

_switch = switch(__name__)
_source = switch(wire.__name__)
_is_used = wire.SOURCE.is_used


def add_asgi(connection: Any, attributes: dict[str, Any], is_now: bool) -> None:
    """Add what is known of the connection that an ASGI `send` is bound to; never raises, as the others here.

    What the server has in its own buffer is not acknowledged either. `is_now`: the server has handed the last byte over
    in this very step of the event loop.
    """
    if not _is_used or _source.off or _switch.off:
        return
    transport = None
    try:
        transport = transport_of(connection)
        # A socket of uvloop's keeps its number after it is closed, which may be another's by then.
        if transport is None or (not is_now and transport.is_closing()):
            return
        told = _asked(transport.get_extra_info("socket"))
        _add(attributes, told, transport.get_write_buffer_size())
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        look_into(wire.SOURCE, error, lambda: transport is not None and transport.is_closing())


def unacked(connection: Any) -> int | None:
    """Return how many bytes the other side of such a connection has not acknowledged; None if that is unknown."""
    attributes: dict[str, Any] = {}
    add_asgi(connection, attributes, is_now=False)
    return attributes.get(NETWORK_UNACKED_BYTES, 0) if attributes else None


def add_wsgi(environ: Any, attributes: dict[str, Any]) -> None:
    """Add what is known of the connection of a WSGI request."""
    if not _is_used or _source.off or _switch.off:
        return
    connection = None
    try:
        connection = socket_of(environ)
        if connection is not None:
            _add(attributes, _asked(connection), 0)
    except Exception as error:  # noqa: BLE001
        look_into(wire.SOURCE, error, lambda: connection is not None and connection.fileno() < 0)


def add_call(find: Callable[[], Any], attributes: dict[str, Any]) -> None:
    """Add what is known of the connection of a call to another service; `find` returns its socket, None for none."""
    if not _is_used or _source.off or _switch.off:
        return
    connection = None
    try:
        connection = find()
        if connection is not None:
            _add(attributes, _asked(connection))
    except Exception as error:  # noqa: BLE001
        look_into(wire.SOURCE, error, lambda: connection is not None and connection.fileno() < 0)


def _add(attributes: dict[str, Any], told: wire.ConnectionState, buffered: int | None = None) -> None:
    rtt_us, retransmits, unacked = told
    attributes[NETWORK_RTT_MS] = rtt_us / 1e3
    if retransmits:
        attributes[NETWORK_RETRANSMITS] = retransmits
    if buffered is not None and unacked is not None and (buffered or unacked):
        attributes[NETWORK_UNACKED_BYTES] = unacked + buffered


def _asked(connection: Any) -> wire.ConnectionState:
    began = perf_counter_ns()
    told = wire.read_connection(connection)
    took = perf_counter_ns() - began
    if took > SLOW_NS:
        wire.SOURCE.took(took)
    return told
