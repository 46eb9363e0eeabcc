"""Round trip, retransmissions and unacknowledged bytes of a connection: TCP_INFO, one system call. Linux alone."""

from __future__ import annotations

import struct
from typing import Any, Final

from stagetrace import settings
from stagetrace.sources.base import Source
from stagetrace.sources.socket_wait import lack_of, tcp_info

_SIZE: Final = 216  # struct tcp_info up to tcpi_bytes_retrans, since Linux 4.19
_LEAST: Final = 104  # up to tcpi_total_retrans, since 2.6
# rtt, total_retrans, then bytes: acked, not sent yet, sent, of them sent again
_all: Final = struct.Struct("=68xI28xI16xQ16xI52xQQ").unpack_from
_first: Final = struct.Struct("=68xI28xI").unpack_from


# One connection at one moment: the smoothed round trip in microseconds, 0 before any is known; segments retransmitted
# since it began; bytes of ours that the peer has not acknowledged, None where the kernel does not report them.
ConnectionState = tuple[int, int, "int | None"]


SOURCE = Source(__name__, "the wire behind a connection", settings.WIRE, lambda: lack_of(_LEAST))


def read_connection(connection: Any) -> ConnectionState:
    """Return the state of an accepted connection; `connection` is a socket, or an object with its methods.

    Of one that this process opened, the unacknowledged bytes may be one too few. Raise what `tcp_info` raises.
    """
    info = tcp_info(connection, _SIZE)
    if len(info) < _SIZE:
        rtt, retransmits = _first(info)
        return rtt, retransmits, None
    rtt, retransmits, acked, unsent, sent, again = _all(info)
    return rtt, retransmits, max(sent - again - acked + unsent, 0)
