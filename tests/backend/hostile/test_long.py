"""Hostile requests of every kind, and connections that never end, with legal requests beside them.

A million with STAGETRACE_HEAVY=1: about an hour. Legal requests are all accepted and stored. In that run, which has the
machine for itself, 99 % of the spans are acknowledged in a second, and 99 % of the probes answered; no request takes
five. Attackers, back end and legal client share its cores.
"""

from __future__ import annotations

import http.client
import json
import resource
import secrets
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import pytest

from backend.hostile import probes_grpc, probes_http
from backend.running import PROTOBUF, Up, environment, export, names_of, raw_call, request, run_up
from backends import LOOPBACK
from heavy import scaled
from stagetrace.backend.receivers import METHOD
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("services")

MANY: Final = 1_000_000
REQUESTS: Final = scaled(1_000, 5_000, MANY)
PROCESSES: Final = 2
MOST_KINDS: Final = 40  # of lines in the log of the back end, each of which comes once in LINE_EVERY_S
LINE_EVERY_S: Final = 10
HELD: Final = scaled(40, 400, 1200)  # connections of each kind that never end, opened again every so often
HELD_S: Final = 20
ROUND_S: Final = 0.05  # between two rounds of legal requests
MOST_S: Final = 1.0
LONGEST_S: Final = 5.0
HEALTH: Final = "/grpc.health.v1.Health/Check"


class Legal:
    """A legal client: sends, asks, probes, and keeps how long each took and which spans were acknowledged."""

    def __init__(self, up: Up) -> None:
        self._up = up
        self._channel = grpc.insecure_channel(up.target())
        self._query_channel = grpc.insecure_channel(up.target("query_grpc_port"))
        self.durations_s: dict[str, list[float]] = defaultdict(list)
        self.stored: list[bytes] = []

    def round(self) -> None:
        """Send one span each over HTTP and gRPC, find the first one, and probe all ports."""
        over_http, over_grpc = (secrets.token_bytes(16) for _ in range(2))
        with self._timed("HTTP"):
            body = request("legal", service="legal", trace=over_http).SerializeToString()
            assert self._http("http_port", "POST", "/v1/traces", body) == 200
        with self._timed("gRPC"):
            export(self._channel, request("legal", service="legal", trace=over_grpc).SerializeToString())
        self.stored += [over_http, over_grpc]
        with self._timed("query"):
            assert self._http("query_http_port", "GET", f"/api/v3/traces/{over_http.hex()}") == 200
        with self._timed("query gRPC"):
            raw_call(self._query_channel, api_v3.path("GetServices"))
        for port in ("http_port", "query_http_port"):
            with self._timed("health"):
                assert self._http(port, "GET", "/health") == 200
        for channel in (self._channel, self._query_channel):
            with self._timed("health gRPC"):
                raw_call(channel, HEALTH)

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.durations_s[kind].append(time.monotonic() - start)

    def _http(self, port: str, method: str, path: str, body: bytes = b"") -> int:
        """Send a request on a connection of its own, as a probe does; return its status."""
        connection = http.client.HTTPConnection(LOOPBACK, self._up.ready[port], timeout=60)
        try:
            connection.request(method, path, body, {"content-type": PROTOBUF} if body else {})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def report(self) -> str:
        """Return how long each kind took: the median, the 99th percentile and the longest, in ms."""
        lines = []
        for kind, all_s in self.durations_s.items():
            ordered = sorted(all_s)
            shown = (ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1])
            lines.append(f"{kind}: {len(ordered)}, " + " / ".join(f"{one * 1000:.0f}" for one in shown) + " ms")
        return "\n".join(lines)


def held(up: Up, stack: ExitStack) -> None:
    """Open connections of every kind that never ends, on all ports."""
    otlp, query = ((LOOPBACK, up.ready[port]) for port in ("http_port", "query_http_port"))
    rpc, query_rpc = ((LOOPBACK, up.ready[port]) for port in ("grpc_port", "query_grpc_port"))
    find = api_v3.path("GetServices")
    for address in (otlp, query, rpc, query_rpc):
        stack.enter_context(probes_http.silent(address, HELD))
    for address in (otlp, query):
        stack.enter_context(probes_http.slow_headers(address, HELD // 4))
    stack.enter_context(probes_http.slow_bodies(otlp, HELD // 4))
    stack.enter_context(probes_http.stopped_bodies(otlp, 4, 1 << 20))
    stack.enter_context(probes_grpc.begun_calls(rpc, METHOD, 4))
    stack.enter_context(probes_grpc.begun_calls(rpc, METHOD, 2, b"x"))
    stack.enter_context(probes_grpc.begun_calls(query_rpc, find, 4))
    stack.enter_context(probes_grpc.unread_responses(query_rpc, find, b"", 2))


@contextmanager
def many_descriptors() -> Iterator[None]:
    """Let this process hold as many connections as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def attackers(up: Up) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the hostile clients; yield their processes."""
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "backend.hostile.attacker", json.dumps(up.ready), str(REQUESTS // PROCESSES)]
    processes = [
        subprocess.Popen([*command, str(seed)], env=environment({"PYTHONPATH": tests})) for seed in range(PROCESSES)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.mark.sample
@pytest.mark.heavier(f"{REQUESTS:,} hostile requests")
def test_legal_requests_are_served_beside_hostile_ones(tmp_path: Path) -> None:
    with run_up(tmp_path) as up, many_descriptors(), attackers(up) as processes:
        legal, began = Legal(up), time.monotonic()
        while any(process.poll() is None for process in processes):
            with ExitStack() as stack:
                held(up, stack)
                until = time.monotonic() + HELD_S
                while time.monotonic() < until and any(process.poll() is None for process in processes):
                    legal.round()
                    time.sleep(ROUND_S)
        print(legal.report())  # noqa: T201
        assert [process.returncode for process in processes] == [0] * PROCESSES
        for trace in legal.stored[:: max(1, len(legal.stored) // 2000)]:
            assert names_of(up, trace.hex()) == ["legal"]
        assert up.metric('stagetrace_refused_requests_total{reason="internal"}') == 0
        lines = (tmp_path / "up.log").read_text().splitlines()
        kinds = Counter(line.partition(" (")[0] for line in lines)  # before how many more there were
        assert len(kinds) <= MOST_KINDS, kinds
        assert max(kinds.values(), default=0) <= (time.monotonic() - began) / LINE_EVERY_S + 1, kinds
    if REQUESTS == MANY:
        for kind, all_s in legal.durations_s.items():
            assert max(all_s) < LONGEST_S, legal.report()
            assert "query" in kind or sorted(all_s)[len(all_s) * 99 // 100] < MOST_S, legal.report()
