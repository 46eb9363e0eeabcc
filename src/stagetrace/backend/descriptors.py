"""How many connections a port may hold: each costs a file descriptor, and the store needs some."""

from __future__ import annotations

import resource
from typing import Final, NamedTuple

_PORTS: Final = 4
_OTHERS: Final = 512  # for the files of the store, for DuckDB and for what libraries open
_LEAST: Final = 16


class Connections(NamedTuple):
    """How many connections each port of a kind may hold."""

    http: int
    grpc: int


# gRPC cannot close a silent connection for a new one, only refuse the new one: there have to be many.
_WANTED: Final = Connections(http=1024, grpc=4096)


def connections_of_ports() -> Connections:
    """Return how many connections each of the four ports may hold.

    Raises the soft limit of this process (`ulimit -n`) as far as that needs and the hard limit allows.
    """
    wanted = 2 * sum(_WANTED) + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = wanted if hard == unlimited else min(wanted, hard)
    if soft not in (unlimited, allowed) and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft == unlimited or soft >= wanted:
        return _WANTED
    # With few descriptors the store keeps half of them.
    left = soft - min(_OTHERS, soft // 2)
    http = max(min(left // _PORTS, _WANTED.http), _LEAST)
    return Connections(http, max(left // 2 - http, _LEAST))
