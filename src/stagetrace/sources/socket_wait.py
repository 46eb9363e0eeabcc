"""How long the data of a connection has lain in the kernel: TCP_INFO, one system call.

Linux alone. The kernel keeps the time of the last data in ticks of its clock, so a wait is known to within one tick;
data received later restarts it, so it is never longer than the oldest data has waited.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from typing import Any, Final

from stagetrace import settings
from stagetrace.sources.base import Source
from stagetrace.system.native import native

TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
_MONOTONIC_COARSE: Final = 6  # its resolution is the tick
_last_data_recv: Final = struct.Struct("=I").unpack_from
_LAST_DATA_RECV_AT: Final = 52
_END_AT: Final = 56
# On a new connection the kernel reports the time since an earlier one: longer waits are ignored.
MAX_WAIT_MS: Final = 3_600_000


def lack_of(size: int) -> str | None:
    """Return why the first `size` bytes of TCP_INFO cannot be read here; None where they can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no TCP_INFO as Linux has it"
    with socket.socket() as one:
        if len(one.getsockopt(socket.IPPROTO_TCP, TCP_INFO, size)) < size:
            return "this kernel's TCP_INFO ends too early"
    return None


SOURCE = Source(__name__, "the wait in the socket", settings.SOCKET_WAIT, lambda: lack_of(_END_AT))
TICK_NS: int = round(time.clock_getres(_MONOTONIC_COARSE) * 1e9) if sys.platform == "linux" else 10_000_000
# A shorter wait is not shown: it may be only the border between two ticks.
LEAST_MS: int = -(-2 * TICK_NS // 1_000_000)


def _tcp_info(connection: Any, size: int) -> bytes:
    """Return the first `size` bytes of a connection's TCP_INFO, or what there is; raises what the connection raises."""
    found: bytes = connection.getsockopt(6, TCP_INFO, size)
    return found


tcp_info = getattr(native("kernel"), "tcp_info", _tcp_info)


def waited_ms(connection: Any) -> int:
    """Return for how many milliseconds the last data received has lain in the socket; 0 if too short to measure.

    `connection` is a socket, or an object with its methods; raises what that raises, AttributeError included.
    """
    info = tcp_info(connection, _END_AT)
    if len(info) < _END_AT:
        return 0
    (waited,) = _last_data_recv(info, _LAST_DATA_RECV_AT)
    return waited if LEAST_MS <= waited < MAX_WAIT_MS else 0
