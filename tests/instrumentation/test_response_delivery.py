"""A client that has the announced length may close: the request is judged. With less, the client has disconnected."""

from __future__ import annotations

import secrets
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from services import PYTHON, WSGI_SERVERS, run_service
from sink import Request, Sink, assert_tiled, run_sink
from stagetrace.instrumentation.http.response_delivery import announced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services import Service

pytestmark = pytest.mark.usefixtures("services")

ASGI = {
    "uvicorn h11": ["uvicorn", "announced:app", "--port", "{port}", "--http", "h11"],
    "uvicorn httptools": ["uvicorn", "announced:app", "--port", "{port}", "--http", "httptools"],
    "hypercorn": ["hypercorn", "announced:app", "--bind", "127.0.0.1:{port}"],
    "granian": ["granian", "--interface", "asgi", "--no-ws", "announced:app", "--port", "{port}"],
    "daphne": ["daphne", "-p", "{port}", "announced:app"],
}


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with run_sink() as running:
        yield running


def env(sink: Sink) -> dict[str, str]:
    return {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": "* within 60s",
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }


@pytest.fixture(scope="module", params=ASGI)
def asgi(
    request: pytest.FixtureRequest, sink: Sink, services: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    assert services is None
    argv = [PYTHON, "-m", *ASGI[request.param]]
    with run_service(tmp_path_factory.mktemp("asgi"), argv=argv, env=env(sink)) as service:
        yield service
        assert "failed (" not in service.log


@pytest.fixture(scope="module", params=["gunicorn", "gunicorn gthread", "waitress", "werkzeug", "wsgiref", "cheroot"])
def wsgi(
    request: pytest.FixtureRequest, sink: Sink, services: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    assert services is None
    argv = [part.replace("{app}:app", "announced:wsgi") for part in WSGI_SERVERS[request.param]]
    with run_service(tmp_path_factory.mktemp("wsgi"), argv=argv, env=env(sink)) as service:
        yield service
        assert "failed (" not in service.log


def take(service: Service, sink: Sink, path: str, size: int, method: str = "GET") -> Request:
    """Ask, read the head and `size` bytes of the body, close; return what was recorded."""
    address, trace_id = urlsplit(service.url), secrets.token_hex(16)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\ntraceparent: 00-{trace_id}-{secrets.token_hex(8)}-01\r\n\r\n"
        connection.sendall(head.encode())
        got = b""
        while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < size:
            piece = connection.recv(size + 4096)
            assert piece
            got += piece
        if size:
            time.sleep(0.05)  # the server is told of what arrived
    request = sink.request(trace_id)
    assert_tiled(request)
    return request


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
