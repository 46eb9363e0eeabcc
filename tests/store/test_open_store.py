"""Every way in which a store gives no answer ends in an error of at most three lines that says what to do."""

from __future__ import annotations

import http.server
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from backends import free_port
from pki import make_pki
from stagetrace.errors import StoreError
from stagetrace.store import open_store
from stagetrace.store.base import host_and_port
from stagetrace.store.jaeger.client import JaegerClient
from stagetrace.store.jaeger.reader import JaegerReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backends import Jaeger


def failure(url: str, timeout_s: float = 20) -> str:
    """Return the error of asking `url` for its services, after checking its form."""
    host, port = host_and_port(url, 16685)
    with JaegerReader(JaegerClient(host, port, timeout_s)) as reader, pytest.raises(StoreError) as caught:
        reader.services()
    text = str(caught.value)
    assert 2 <= len(text.splitlines()) <= 3
    assert text.startswith(f"{url}: ")
    return text


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("localhost:16685", "it has no scheme, and there is no such file or folder"),
        ("", "it has no scheme, and there is no such file or folder"),
        ("http://localhost:16686", "there is no kind of store called 'http'"),
        ("://localhost", "there is no kind of store called ''"),
        ("jaeger://", "the host is missing"),
        ("jaeger://:16685", "the host is missing"),
        ("jaeger://localhost:port", "Port could not be cast to integer value as 'port'"),
        ("jaeger://localhost:99999", "Port out of range 0-65535"),
        ("jaeger://localhost:0", "no server listens on port 0"),
        ("jaeger://localhost:16685/api", "nothing but a host and a port belongs in it"),
        ("jaeger://me:secret@localhost:16685", "nothing but a host and a port belongs in it"),
        ("jaeger://localhost?x=1", "nothing but a host and a port belongs in it"),
        ("jaeger://[::1", "Invalid IPv6 URL"),
    ],
)
def test_a_bad_url_names_what_is_wrong_and_what_is_supported(url: str, wrong: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url)
    first, second = str(caught.value).splitlines()
    assert first == f"cannot open store {url!r}: {wrong}"
    assert second.startswith("supported: jaeger://HOST:PORT (Jaeger's gRPC query port, normally 16685), ")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("jaeger://box", ("box", 16685)),
        ("jaeger://box:1234/", ("box", 1234)),
        ("JAEGER://[::1]:1234", ("::1", 1234)),
    ],
)
def test_a_url_names_host_and_port(url: str, expected: tuple[str, int]) -> None:
    assert host_and_port(url, 16685) == expected
    open_store(url).close()


def test_nothing_listens() -> None:
    text = failure(f"jaeger://127.0.0.1:{free_port()}")
    assert "no server listens there" in text
    assert "start Jaeger, or check host and port" in text


def test_the_host_does_not_exist() -> None:
    assert "there is no host of this name" in failure("jaeger://no-such-host.invalid:16685")


def test_the_otlp_port_of_jaeger(jaeger: Jaeger) -> None:
    text = failure(jaeger.otlp_grpc.replace("http://", "jaeger://"))
    assert "a gRPC server answers there, but it has no jaeger.api_v3.QueryService" in text
    assert "normally 16685" in text


def test_the_http_ports_of_jaeger(jaeger: Jaeger) -> None:
    for address in (jaeger.query_http, jaeger.otlp_http):
        assert "a server answers there, but not in gRPC" in failure(address.replace("http://", "jaeger://"))


def test_another_http_server() -> None:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = failure(f"jaeger://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "a server answers there, but not in gRPC" in text


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = failure(f"jaeger://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.5)
    assert "no response within 0.5 s" in text


def test_a_server_that_wants_tls(tmp_path: Path) -> None:
    with _tls_server(tmp_path) as port:
        text = failure(f"jaeger://127.0.0.1:{port}")
    assert "the connection broke" in text
    assert "a server with TLS does so: jaegers://HOST:PORT" in text


@contextmanager
def _tls_server(folder: Path) -> Iterator[int]:
    key, certificate = (make_pki(folder) / f"server.{form}" for form in ("key", "pem"))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()
