"""A client that has the announced length may close: the request is judged. With less, the client has disconnected."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from services import WSGI_SERVERS, asgi_command, new_trace, run_service
from stagetrace.protocols.http_request import announced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services import Service
    from sink import Request, Sink

pytestmark = pytest.mark.usefixtures("services")


@pytest.fixture(scope="module", params=["uvicorn h11", "uvicorn httptools", "hypercorn", "granian", "daphne"])
def asgi(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Service]:
    with serving(asgi_command(request.param, "announced"), sink, folder) as service:
        yield service


@pytest.fixture(scope="module", params=["gunicorn", "gunicorn gthread", "waitress", "werkzeug", "wsgiref", "cheroot"])
def wsgi(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Service]:
    argv = [part.replace("{app}:app", "announced:wsgi") for part in WSGI_SERVERS[request.param]]
    with serving(argv, sink, folder) as service:
        yield service


@contextmanager
def serving(argv: list[str], sink: Sink, folder: Path) -> Iterator[Service]:
    with run_service(folder, argv=argv, env=sink.environment(STAGETRACE_SLA="* within 60s")) as service:
        yield service
        assert "failed (" not in service.log


def take(service: Service, sink: Sink, path: str, size: int, method: str = "GET") -> Request:
    """Ask, read the head and `size` bytes of the body, close; return what was recorded."""
    trace_id, headers = new_trace()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\ntraceparent: {headers['traceparent']}\r\n\r\n"
        connection.sendall(head.encode())
        got = b""
        while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < size:
            piece = connection.recv(size + 4096)
            assert piece
            got += piece
        if size:
            time.sleep(0.05)  # the server is told of what arrived
    return sink.tiled(trace_id)


@pytest.mark.parametrize(("path", "size", "method"), [("all", 1000, "GET"), ("empty", 0, "GET"), ("head", 0, "HEAD")])
def test_a_client_with_the_whole_response_has_not_disconnected(
    path: str, size: int, method: str, asgi: Service, sink: Sink
) -> None:
    request = take(asgi, sink, f"/plain/{path}", size, method)
    assert "stagetrace.network.disconnect" not in request.entry.attributes
    assert request.entry.attributes["sla.verdict"] == "good"
    assert request.entry.status != 2


def test_a_stream_that_is_cancelled_after_its_last_byte_is_complete(asgi: Service, sink: Sink) -> None:
    request = take(asgi, sink, "/stream", 1000)
    assert "stagetrace.network.disconnect" not in request.entry.attributes
    assert request.entry.attributes["sla.verdict"] == "good"
    assert request.entry.attributes["http.response.body.size"] == 1000


@pytest.mark.parametrize(("path", "size"), [("half", 500), ("large", 1000)])
def test_a_client_without_the_whole_response_has_disconnected(path: str, size: int, asgi: Service, sink: Sink) -> None:
    request = take(asgi, sink, f"/plain/{path}", size)
    assert request.entry.attributes["stagetrace.network.disconnect"] == "client"
    assert request.entry.attributes["sla.verdict"] == "excluded"


@pytest.mark.parametrize(("size", "method"), [(1000, "GET"), (0, "HEAD")])
def test_a_wsgi_client_with_the_whole_response_has_not_disconnected(
    size: int, method: str, wsgi: Service, sink: Sink
) -> None:
    """Cheroot takes nothing of a response to HEAD but its head."""
    request = take(wsgi, sink, "/all", size, method)
    assert "stagetrace.network.disconnect" not in request.entry.attributes
    assert request.entry.attributes["sla.verdict"] == "good"


def test_a_wsgi_client_without_the_whole_response_has_disconnected(wsgi: Service, sink: Sink) -> None:
    assert take(wsgi, sink, "/half", 500).entry.attributes["stagetrace.network.disconnect"] == "client"


@pytest.mark.parametrize("value", ["x", "", "1, 1", b"\xff", None])
def test_an_invalid_length_announces_nothing(value: Any) -> None:
    """It is no fault of ours, for which a part would be switched off."""
    assert announced("GET", 200, [("Content-Length", value)]) is None
    assert announced("GET", 200, [("Content-Length", "5"), ("x", value)]) == 5
