"""How long a request has lain in its socket before its server took it up, and who was in the way.

While an event loop is held by somebody's work, or all workers are busy, requests lie in the kernel, and no span that
begins in Python has that time.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded, switch
from stagetrace.instrumentation.connection.arrival import Arrival
from stagetrace.instrumentation.connection.lookup import look_into, socket_of, transport_of
from stagetrace.instrumentation.thread_pools.queue_attributes import crowded
from stagetrace.recording.loop_blockers import holder
from stagetrace.semconv import QUEUE, QUEUE_BLOCKED_BY, QUEUE_REASON
from stagetrace.sources import socket_wait as tcp
from stagetrace.sources.base import SLOW_NS

if TYPE_CHECKING:
    from stagetrace.recording.timeline import Timeline

SOCKET: Final = "socket"
REASON: Final = {QUEUE_REASON: SOCKET}
_switch = switch(__name__)
_source = switch(tcp.__name__)
_is_used = tcp.SOURCE.is_used


def waited_ns(connection: Any) -> int:
    """Return for how long the data received last by what an ASGI `send` is bound to lay in its socket; 0 if unknown.

    Never raises.
    """
    if not _is_used or _source.off or _switch.off:
        return 0
    transport = transport_of(connection)
    if transport is None:
        return 0
    try:
        return _asked(transport.get_extra_info("socket"))
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        look_into(tcp.SOURCE, error, transport.is_closing)
        return 0


def lain_ns(connection: Any) -> int:
    """Return for how long the data received last by a socket lay in the kernel; 0 if unknown. Never raises."""
    if connection is None or not _is_used or _source.off or _switch.off:
        return 0
    try:
        return _asked(connection)
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        look_into(tcp.SOURCE, error, lambda: connection.fileno() < 0)
        return 0


def arrived(environ: Any, arrival: Arrival | None, now: int) -> Arrival | None:
    """Return what is known of the arrival of a WSGI request, with its wait in the socket if there was one.

    `arrival` is what the server's hook knows, whose waits begin when the server has taken up the connection.
    """
    if not _is_used or _source.off or _switch.off:
        return arrival
    connection = socket_of(environ)
    if connection is None:
        return arrival
    try:
        waited = _asked(connection)
        if not waited:
            return arrival
        start, end = now - waited, now if arrival is None else arrival.start
        if end - start < tcp.TICK_NS:
            return arrival  # that of the hook is the same wait
        wait = (QUEUE, _attributes(start, end), start, end)
        return Arrival(start, (wait,) if arrival is None else (wait, *arrival.waits))
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        look_into(tcp.SOURCE, error, lambda: connection.fileno() < 0)
        return arrival


def _asked(connection: Any) -> int:
    began = perf_counter_ns()
    waited = tcp.waited_ms(connection)
    took = perf_counter_ns() - began
    if took > SLOW_NS:
        tcp.SOURCE.took(took)
    return waited * 1_000_000


@guarded
def show(timeline: Timeline, start: int, end: int) -> None:
    """Mark [start, end) on a timeline, which begins with it, as the wait in the socket."""
    timeline.enter(QUEUE, _attributes(start, end), at=start)
    timeline.leave(QUEUE, at=end)


def _attributes(start: int, end: int) -> dict[str, str]:
    crowded[SOCKET] = crowded.get(SOCKET, 0) + 1
    blocked_by = holder(start, end)
    return {**REASON, QUEUE_BLOCKED_BY: blocked_by} if blocked_by else REASON
