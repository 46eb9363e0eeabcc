"""How long a request waited in its socket before its server read it, and which request blocked the server meanwhile.

While one request's work blocks the event loop, or all workers are busy, other requests wait in the kernel. No span that
begins in Python contains that time.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded, switch
from stagetrace.instrumentation.connection.arrival import Arrival
from stagetrace.instrumentation.connection.lookup import note_error, socket_of, transport_of
from stagetrace.process_status.counts import crowded_waits
from stagetrace.recording.loop_blockers import blocker
from stagetrace.semconv import QUEUE, QUEUE_BLOCKED_BY, QUEUE_REASON
from stagetrace.sources import socket_wait
from stagetrace.sources.base import SLOW_NS

if TYPE_CHECKING:
    from stagetrace.recording.record import RequestRecord

SOCKET: Final = "socket"
REASON: Final = {QUEUE_REASON: SOCKET}
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
    if _is_off():
        return 0
    transport = transport_of(connection)
    if transport is None:
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
def show(record: RequestRecord, start: int, end: int) -> None:
    """Mark [start, end), with which the record begins, as the wait in the socket."""
    record.enter(QUEUE, _attributes(start, end), at=start)
    record.leave(QUEUE, at=end)


def _attributes(start: int, end: int) -> dict[str, str]:
    crowded_waits[SOCKET] = crowded_waits.get(SOCKET, 0) + 1
    blocked_by = blocker(start, end)
    return {**REASON, QUEUE_BLOCKED_BY: blocked_by} if blocked_by else REASON
