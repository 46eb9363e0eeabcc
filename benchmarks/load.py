"""Generate load in a process of its own: send requests at given times, and read the server's CPU clock around them.

The process prints one JSON object: `latencies_s` from the intended start of each request (a late send counts as
latency, so nothing is omitted), `lags_s` by which sends were late, `seconds`, `cpu_s` of the server process,
`warmed_up` requests sent before, and with --gc-file the figures of its garbage collector: `collections`,
`collecting_s` and `garbage`, each by generation.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BODY = json.dumps({"features": [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8]}).encode()
REQUEST = (
    b"POST /predict HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
) + BODY
HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length: "


class Connection:
    """One keep-alive connection with at most one request in progress."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self.due = 0.0

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, due: float) -> None:
        self.due = due
        self._received = b""
        self._socket.sendall(REQUEST)

    def answered(self) -> bool:
        """Read available bytes; return whether the response is complete. Headers and body may arrive separately."""
        data = self._socket.recv(65536)
        if not data:
            raise SystemExit("the server closed a connection")
        self._received += data
        head, found, body = self._received.partition(HEAD_END)
        if not found:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {head[:100]!r}")
        return len(body) >= int(head.lower().partition(LENGTH)[2].split(b"\r\n")[0])


def replay(connections: Sequence[Connection], due: Sequence[float]) -> tuple[list[float], list[float]]:
    """Send a request at each of the times `due`, in seconds from now; return the latencies and the lags of the sends.

    A request waits if no connection is free: with all times zero this is a closed loop.
    """
    idle, busy = deque(connections), set[Connection]()
    latencies: list[float] = []
    lags: list[float] = []
    start = time.perf_counter()
    while len(lags) < len(due) or busy:
        # First in, first out, so that no connection idles until the server closes it.
        while idle and len(lags) < len(due) and (now := time.perf_counter() - start) >= due[len(lags)]:
            connection = idle.popleft()
            connection.send(due[len(lags)])
            lags.append(now - connection.due)
            busy.add(connection)
        waits = idle and len(lags) < len(due)
        timeout = max(0.0, due[len(lags)] + start - time.perf_counter()) if waits else None
        # select, whose timeout is exact to the microsecond: epoll's is rounded up to the next millisecond.
        for connection in select.select(busy, [], [], timeout)[0]:
            if connection.answered():
                latencies.append(time.perf_counter() - start - connection.due)
                busy.remove(connection)
                idle.append(connection)
    return latencies, lags


def poisson(chance: random.Random, rate: float, seconds: float) -> list[float]:
    """Return the times of random arrivals, `rate` of them a second."""
    times: list[float] = []
    at = chance.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += chance.expovariate(rate)
    return times


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of another process so far, dead ones included, to the nanosecond (Linux)."""
    return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) computes


def collector_figures(file: Path) -> tuple[float, ...]:
    """Return the figures of the service's garbage collector so far: see `app_gc`."""
    return struct.unpack("9d", file.read_bytes())


def main() -> None:
    """Warm up, wait, measure, wait."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/load.py --port 8000 --pid 4711 --rate 300 --seconds 10",
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the server, whose CPU time is read")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--requests", type=int, default=3000, help="in a closed loop, if no --rate is given")
    parser.add_argument("--warm-up", type=int, default=500, help="requests sent before, in the same manner")
    parser.add_argument("--rate", type=float, help="requests a second, as an open loop with Poisson arrivals")
    parser.add_argument("--seconds", type=float, default=10, help="length of the open loop")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--settle", type=float, default=0, help="seconds before and after, in which exports end")
    parser.add_argument("--gc-file", type=Path, help="where a service run as app_gc:app writes its collector's figures")
    args = parser.parse_args()
    connections = [Connection(args.port) for _ in range(args.connections)]
    chance = random.Random(args.seed)
    if args.rate:
        # At the measured rate: a burst before would leave the garbage collector in a state that no service is in.
        warm_up, due = (poisson(chance, args.rate, length) for length in (args.warm_up / args.rate, args.seconds))
    else:
        warm_up, due = [0.0] * args.warm_up, [0.0] * args.requests
    replay(connections, warm_up)
    time.sleep(args.settle)
    collected = collector_figures(args.gc_file) if args.gc_file else ()
    before, start = cpu_seconds(args.pid), time.perf_counter()
    latencies, lags = replay(connections, due)
    seconds = time.perf_counter() - start
    time.sleep(args.settle)
    figures = {"latencies_s": latencies, "lags_s": lags, "seconds": seconds, "cpu_s": cpu_seconds(args.pid) - before}
    figures["warmed_up"] = len(warm_up)
    if args.gc_file:
        done = [now - then for now, then in zip(collector_figures(args.gc_file), collected, strict=True)]
        figures |= {"collections": done[:3], "collecting_s": done[3:6], "garbage": done[6:]}
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
