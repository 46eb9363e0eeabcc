"""A hostile client as a process: `python -m backend.hostile.attacker READY COUNT SEED` sends so many requests.

READY is the line that `stagetrace up --json` prints. Each request is answered, refused or cut off before the next.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import grpc

from backend.hostile import probes_bodies, probes_grpc, probes_http
from backend.mutator import JSON, PROTOBUF, Mutator
from backend.running import raw_call, request
from backends import LOOPBACK
from stagetrace.backend.receivers import METHOD
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BOMB_EVERY: Final = 5000  # requests: one costs its receiver as much as some hundreds of others
_RESETS: Final = 20  # calls that are begun and cancelled on one connection
_PARAMETERS: Final = ("query.start_time_min", "query.start_time_max", "query.attributes", "query.num_traces", "x")


class Attacker:
    """Sends hostile requests to all four ports of one back end."""

    def __init__(self, ready: Mapping[str, Any], seed: int) -> None:
        self._ready = ready
        self._random = random.Random(seed)
        self._mutator = Mutator(seed, request("hostile", service="hostile"))
        self._kept = {
            port: http.client.HTTPConnection(LOOPBACK, ready[port], timeout=60)
            for port in ("http_port", "query_http_port")
        }
        self._channels = {
            port: grpc.insecure_channel(f"{LOOPBACK}:{ready[port]}") for port in ("grpc_port", "query_grpc_port")
        }
        self._deep = [
            probes_bodies.with_deep(nesting, depth, "deep", where=where)
            for nesting in ("arrays", "maps")
            for depth in probes_bodies.DEPTHS
            for where in ("span", "resource")
        ]
        self._bombs = (
            ("http_port", probes_bodies.empty_resources(30 << 20), PROTOBUF),
            ("http_port", probes_bodies.empty_resources_json(5 << 20), JSON),
            ("http_port", probes_bodies.slow_spans(20_000), PROTOBUF),
        )

    def run(self, count: int) -> None:
        """Send so many requests, of every kind in turn."""
        kinds: tuple[tuple[Callable[[], None], int], ...] = (
            (self._mutated, 55), (self._mutated_call, 12), (self._nested, 5), (self._foreign, 10), (self._query, 10),
            (self._garbage, 8), (self._reset, 1),
        )  # fmt: skip
        attacks, weights = zip(*kinds, strict=True)
        sent = bombs = 0
        while sent < count:
            attack = self._random.choices(attacks, weights)[0]
            attack()
            sent += _RESETS if attack == self._reset else 1
            if sent >= bombs * _BOMB_EVERY:
                self._bomb()
                bombs += 1

    def _send(self, port: str, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        """Send a request and read its response; the back end may have closed the connection."""
        connection = self._kept[port]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            connection.getresponse().read()
        except (ConnectionError, http.client.HTTPException):
            connection.close()  # the next request opens another

    def _mutated(self) -> None:
        case = self._mutator.case()
        coded = {"content_encoding": case.encoding} if case.encoding else {}
        self._send("http_port", "POST", "/v1/traces", case.body, content_type=case.kind, **coded)

    def _mutated_call(self) -> None:
        port, method = self._random.choice((("grpc_port", METHOD), ("query_grpc_port", api_v3.path("FindTraces"))))
        with suppress(grpc.RpcError):
            raw_call(self._channels[port], method, self._mutator.mutated(b"\x0a\x05hello\x12\x03abc"))

    def _nested(self) -> None:
        kind, body = self._random.choice(list(self._random.choice(self._deep).items()))
        self._send("http_port", "POST", "/v1/traces", body, content_type=kind)

    def _foreign(self) -> None:
        path = self._random.choice(("/", "/api/v3/services", "/metrics"))
        origin = self._random.choice(("null", "https://evil.example", f"http://localhost:{self._ready['http_port']}"))
        self._send("query_http_port", "GET", path, origin=origin)

    def _query(self) -> None:
        given = (self._random.choice(_PARAMETERS) for _ in range(4))
        text = "&".join(f"{name}={quote(self._random.randbytes(12))}" for name in given)
        self._send("query_http_port", "GET", f"/api/v3/traces?{text}")

    def _garbage(self) -> None:
        port = self._random.choice(("grpc_port", "http_port", "query_grpc_port", "query_http_port"))
        content = self._random.choice((*probes_http.GARBAGE, *probes_grpc.GARBAGE, self._random.randbytes(100)))
        with suppress(ConnectionError), socket.create_connection((LOOPBACK, self._ready[port]), timeout=60) as one:
            one.sendall(content)

    def _reset(self) -> None:
        probes_grpc.reset_calls((LOOPBACK, self._ready["grpc_port"]), METHOD, _RESETS)

    def _bomb(self) -> None:
        port, body, kind = self._random.choice(self._bombs)
        self._send(port, "POST", "/v1/traces", body, content_type=kind, content_encoding="gzip")


if __name__ == "__main__":
    Attacker(json.loads(sys.argv[1]), int(sys.argv[3])).run(int(sys.argv[2]))
