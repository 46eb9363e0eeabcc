"""What the kernel knows of the wire behind a connection: TCP_INFO, one system call. Linux alone."""

from __future__ import annotations

import struct
from typing import Any, Final

from stagetrace import config
from stagetrace.sources.base import Source
from stagetrace.sources.socket_wait import lack_of, tcp_info

_SIZE: Final = 216  # struct tcp_info up to tcpi_bytes_retrans, since Linux 4.19
_LEAST: Final = 104  # up to tcpi_total_retrans, since 2.6
# rtt, total_retrans, then bytes: acked, not sent yet, sent, of them sent again
_all: Final = struct.Struct("=68xI28xI16xQ16xI52xQQ").unpack_from
_first: Final = struct.Struct("=68xI28xI").unpack_from


# One connection at one time: the round trip, smoothed, in microseconds, 0 before any is known; how many segments were
# sent again since it began; how many bytes of ours the other side has not acknowledged, None where that is not told.
Wire = tuple[int, int, "int | None"]


SOURCE = Source(__name__, "the wire behind a connection", config.WIRE, lambda: lack_of(_LEAST))


def wire(connection: Any) -> Wire:
    """Return what is known of a connection that came in; `connection` is a socket, or what stands for one.

    Of one that was opened from here, `unacked` may be one too few. Raises what `tcp_info` raises.
    """
    info = tcp_info(connection, _SIZE)
    if len(info) < _SIZE:
        rtt, retransmits = _first(info)
        return rtt, retransmits, None
    rtt, retransmits, acked, unsent, sent, again = _all(info)
    return rtt, retransmits, max(sent - again - acked + unsent, 0)
