"""How many connections a port may hold: each costs a file descriptor, and the store needs some."""

from __future__ import annotations

import resource
from typing import Final

_PORTS: Final = 4
_CONNECTIONS: Final = 1024  # of one port, where the descriptors suffice
_OTHERS: Final = 512  # for the files of the store, for DuckDB and for what libraries open
_LEAST: Final = 16


def connections_of_a_port() -> int:
    """Return how many connections each of the four ports may hold.

    Raises the soft limit of this process (`ulimit -n`) as far as that needs and the hard limit allows.
    """
    wanted = _PORTS * _CONNECTIONS + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = wanted if hard == unlimited else min(wanted, hard)
    if soft not in (unlimited, allowed) and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft == unlimited or soft >= wanted:
        return _CONNECTIONS
    # With few descriptors the store keeps half of them.
    return max((soft - min(_OTHERS, soft // 2)) // _PORTS, _LEAST)
