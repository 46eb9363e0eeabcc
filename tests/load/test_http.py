"""The HTTP client of the load generator against a server of raw bytes: it must take any response that is one."""

from __future__ import annotations

import asyncio
import re
from select import select
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends import free_port
from stagetrace.load import generator
from stagetrace.load.base import LoadError
from stagetrace.load.generator import TIMEOUT, Generator
from stagetrace.load.http import CLOSED, Address, HttpSender, message

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from stagetrace.load.generator import Run

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each request with what `respond` returns: bytes, sent in one or in parts; None closes the connection."""

    def __init__(self, respond: Callable[[int], Any]) -> None:
        self.respond = respond
        self.received: list[bytes] = []
        self.connections = 0
        self.address = Address("127.0.0.1", 0)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.received.append(head + body)
                answer = self.respond(len(self.received) - 1)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                for part in [answer] if isinstance(answer, bytes) else answer or []:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                if answer is None or b"close" in b"".join([answer] if isinstance(answer, bytes) else answer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _ran(
    respond: Callable[[int], Any], due: Any, *, messages: Any = None, timeout_s: float = 5, **options: Any
) -> tuple[Run, Server]:
    async def main() -> tuple[Run, Server]:
        async with Server(respond) as server:
            given = messages or [message("GET", "/x", [("host", "h")], None)]
            sender = HttpSender(server.address, given, **{"connections": 50, **options})
            await sender.open()
            ran = await Generator(due, sender, timeout_s).run()
            await sender.close()
            return ran, server

    return generator.run(main())


RESPONSES: dict[str, Any] = {
    "of known length": OK,
    "in chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "byte by byte": [bytes([byte]) for byte in OK],
    "without a body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "after an informational one": b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK,
    "continued": [b"HTTP/1.1 100 Continue\r\n\r\n", OK],
    "and the connection is closed": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
    "ended by the connection's end": b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall of this",
    "of HTTP/1.0": b"HTTP/1.0 200 OK\r\nx: close\r\n\r\nold",
    "large": [b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n", b"x" * 3_000_000],
}


@pytest.mark.parametrize("respond", RESPONSES.values(), ids=list(RESPONSES))
def test_a_response(respond: Any) -> None:
    ran, server = _ran(lambda _number: respond, generator.constant(200, 0.02))
    assert ran.reasons == [None] * 4
    assert np.isfinite(ran.latency_s).all()
    assert (ran.latency_s > 0).all()
    assert len(server.received) == 4


FAILURES: dict[str, tuple[Any, str]] = {
    "status": (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "status 503"),
    "redirect": (b"HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n", "status 302"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6 close\r\n", "no HTTP response"),
    "no response": (None, CLOSED),
    "half a response": (b"HTTP/1.1 200 OK\r\nx: close\r\ncontent-length: 10\r\n\r\nhalf", CLOSED),
    "half a head": (b"HTTP/1.1 200 OK\r\nx: close\r\n", CLOSED),
}


@pytest.mark.parametrize(("respond", "failure"), FAILURES.values(), ids=list(FAILURES))
def test_a_failure_is_counted_by_its_reason_and_spoils_no_later_request(respond: Any, failure: str) -> None:
    ran, _ = _ran(lambda number: respond if number % 2 == 0 else OK, generator.constant(50, 0.08))
    assert ran.reasons == [failure, None, failure, None]
    assert np.isinf(ran.latency_s[[0, 2]]).all()


def test_other_statuses_can_be_expected() -> None:
    missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    ran, _ = _ran(lambda _number: missing, generator.constant(50, 0.04), expected={404})
    assert ran.reasons == [None, None]


def test_the_request_is_what_was_given_and_bodies_take_turns() -> None:
    messages = [message("PUT", "/a?b=c", [("host", "h:1"), ("X-Key", "v")], body) for body in (b"one", b"", None)]
    ran, server = _ran(lambda _number: OK, generator.constant(50, 0.08), messages=messages)
    sent = [f"00-{one}".encode() for one in ran.trace_ids]
    heads = [re.sub(rb"(traceparent: 00-.{32})-.{16}-01", rb"\1", one) for one in server.received]
    start = b"PUT /a?b=c HTTP/1.1\r\nhost: h:1\r\nX-Key: v\r\n"
    assert heads == [
        start + b"content-length: 3\r\ntraceparent: " + sent[0] + b"\r\n\r\none",
        start + b"content-length: 0\r\ntraceparent: " + sent[1] + b"\r\n\r\n",
        start + b"traceparent: " + sent[2] + b"\r\n\r\n",
        start + b"content-length: 3\r\ntraceparent: " + sent[3] + b"\r\n\r\none",
    ]


def test_connections_are_kept() -> None:
    ran, server = _ran(lambda _number: OK, generator.constant(100, 0.3), connections=1)
    assert ran.reasons == [None] * 30
    assert server.connections == 1


def test_a_request_that_finds_all_connections_busy_waits_and_is_late() -> None:
    """Two connections, four requests at once to a server that takes 0.2 s: two are sent late."""

    async def slowly() -> bytes:
        await asyncio.sleep(0.2)
        return OK

    ran, server = _ran(lambda _number: slowly(), np.zeros(4), connections=2)
    assert server.connections == 2
    assert ran.reasons == [None] * 4
    assert (ran.late_s[:2] < 0.15).all()
    assert (ran.late_s[2:] >= 0.15).all()
    assert (ran.latency_s[2:] >= 0.4).all()


def test_what_takes_too_long_is_given_up_with_its_connection() -> None:
    async def never() -> bytes:
        await asyncio.sleep(30)
        return OK

    ran, server = _ran(lambda number: never() if number == 0 else OK, np.array([0, 0.5]), timeout_s=0.3)
    assert ran.reasons == [TIMEOUT, None]
    assert server.connections == 2


def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    """Servers close such connections, some after 2 s, just as a request comes."""
    ran, server = _ran(lambda _number: OK, np.array([0, 1.3]))
    assert ran.reasons == [None, None]
    assert server.connections == 2


def test_a_connection_closed_by_the_server_while_idle_costs_no_request() -> None:
    unannounced = b"HTTP/1.1 200 OK\r\nx: close\r\ncontent-length: 2\r\n\r\nok"
    ran, server = _ran(lambda _number: unannounced, np.arange(3) * 0.2)
    assert ran.reasons == [None] * 3
    assert server.connections == 3


def test_nobody_there_is_an_error() -> None:
    async def main() -> None:
        await HttpSender(Address("127.0.0.1", free_port()), [], connections=1).open()

    with pytest.raises(LoadError, match=r"cannot connect to 127\.0\.0\.1 port"):
        generator.run(main())


def test_timers_are_not_rounded_to_the_milliseconds_of_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def noted(*given: Any) -> Any:
        waits.append(given[3])
        return select(*given)

    monkeypatch.setattr(generator, "select", noted)
    for _ in range(20):  # a busy machine is late for one
        generator.run(asyncio.sleep(0.00237))
    assert any(0.002 < one < 0.0024 for one in waits)
