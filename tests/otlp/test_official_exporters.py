"""Our transports beside the official exporters: of the same variables, the same arrives."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from otlp.clients import PROTOCOLS
from otlp.receiver import Receiver, run_receiver
from otlp.sending import sdk_spans
from services import run_python
from stagetrace import guard
from stagetrace.otlp.export.batch_processor import open_transport
from stagetrace.otlp.export.client import ExportClient
from stagetrace.patches import opentelemetry as patched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SPANS = sdk_spans(200)
REQUEST = official(SPANS).SerializeToString()
ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
# Of headers: ours, the length of gzip with a time in it, and that a response, of some bytes, is not to be compressed.
UNSENT = ("user-agent", "content-length", "accept-encoding")


def variables(**values: str) -> dict[str, str]:
    return {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in values.items()}


# `{url}` is the receiver's address as a URL, `{address}` without a scheme, `{pki}` a folder of certificates.
PLAIN = {
    "endpoint": variables(ENDPOINT="{url}"),
    "a slash at its end": variables(ENDPOINT="{url}/"),
    "a path": variables(ENDPOINT="{url}/below"),
    "an endpoint of traces": variables(TRACES_ENDPOINT="{url}/mine/it/is", ENDPOINT="http://127.0.0.1:1"),
    "empty is unset": variables(TRACES_ENDPOINT="", ENDPOINT="{url}", TRACES_HEADERS="", HEADERS="a=1"),
    "headers": variables(ENDPOINT="{url}", HEADERS="Authorization=Bearer%20t,x-tenant=a b,broken,empty="),
    "headers of traces": variables(ENDPOINT="{url}", HEADERS="a=1,b=2", TRACES_HEADERS="b=3"),
    "gzip": variables(ENDPOINT="{url}", COMPRESSION="gzip"),
    "gzip of traces": variables(ENDPOINT="{url}", TRACES_COMPRESSION="GZIP"),
    "timeout": variables(ENDPOINT="{url}", TIMEOUT="7", TRACES_TIMEOUT="5.5"),
}
HTTP = {
    "deflate": variables(ENDPOINT="{url}", COMPRESSION="deflate"),
    "no compression of traces": variables(ENDPOINT="{url}", COMPRESSION="gzip", TRACES_COMPRESSION="none"),
    "an unknown compression": variables(ENDPOINT="{url}", COMPRESSION="lz4"),
    "a timeout that is no number": variables(ENDPOINT="{url}", TIMEOUT="soon"),
    "headers over ours": variables(ENDPOINT="{url}", HEADERS="content-type=application/x-other,user-agent=me"),
    "a proxy": {**variables(ENDPOINT="http://nowhere.invalid:4318"), "HTTP_PROXY": "{url}"},
}
GRPC = {
    "insecure": variables(ENDPOINT="{address}", INSECURE="true"),
    "insecure traces": variables(ENDPOINT="{address}", INSECURE="false", TRACES_INSECURE="True"),
}
TLS_FILES = {"CERTIFICATE": "{pki}/ca.pem", "CLIENT_KEY": "{pki}/client.key", "CLIENT_CERTIFICATE": "{pki}/client.pem"}
TRACES_FILES = {f"TRACES_{name}": path for name, path in TLS_FILES.items()}
OTHER = {**TLS_FILES, "CERTIFICATE": "{pki}/other.pem"}
TLS = {
    "certificates": variables(ENDPOINT="{tls_url}", **TLS_FILES),
    "certificates of traces": variables(ENDPOINT="{tls_url}", **OTHER, **TRACES_FILES),
    "another authority": variables(ENDPOINT="{tls_url}", TIMEOUT="1", **OTHER),
    "no client certificate": variables(ENDPOINT="{tls_url}", TIMEOUT="1", CERTIFICATE="{pki}/ca.pem"),
    "no such file": variables(ENDPOINT="{tls_url}", TIMEOUT="1", CERTIFICATE="{pki}/none.pem"),
    "https is never insecure": variables(ENDPOINT="{tls_url}", INSECURE="true", **TLS_FILES),
}
TLS_GRPC = {"no scheme is secure": variables(ENDPOINT="{address}", **TLS_FILES)}


def send_official(protocol: str) -> bool:
    exporter = GrpcExporter() if protocol == "grpc" else HttpExporter()
    result = exporter.export(SPANS)
    exporter.shutdown()
    return result is SpanExportResult.SUCCESS


def send_ours(protocol: str) -> bool:
    client = ExportClient(partial(open_transport, f"otlp_proto_{protocol}"), "there")
    outcome = client.send(REQUEST)
    client.shutdown()
    return outcome.delivered


@contextmanager
def counting(port: int) -> Iterator[tuple[int, list[int]]]:
    """Relay connections to a port; give the relay's own, and the sizes of what clients have sent."""
    sizes: list[int] = []

    def pump(source: socket.socket, target: socket.socket, seen: list[int]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                seen.append(len(data))
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                upstream = socket.create_connection(("127.0.0.1", port))
                threading.Thread(target=pump, args=(client, upstream, sizes), daemon=True).start()
                threading.Thread(target=pump, args=(upstream, client, []), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], sizes
        server.shutdown(socket.SHUT_RDWR)


def arrived(send: Callable[[str], bool], protocol: str, settings: dict[str, str], pki: Path, *, tls: bool) -> Any:
    """Return whether it is delivered, and what arrives: paths, headers, certificates, requests, and if it is small."""
    with run_receiver(tls=pki if tls else None) as receiver, pytest.MonkeyPatch.context() as patch:
        with counting(receiver.ports[protocol == "http"]) as (port, sizes):
            address = f"127.0.0.1:{port}"
            names = {"address": address, "url": f"http://{address}", "tls_url": f"https://{address}", "pki": str(pki)}
            for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
                patch.delenv(name, raising=False)
                patch.delenv(name.lower(), raising=False)
            for name, value in settings.items():
                patch.setenv(name, value.format(**names))
            delivered = send(protocol)
        headers = [{k: v for k, v in one.items() if k not in UNSENT} for one in receiver.headers[:1]]
        headers = [{k: v.replace(address, "there") for k, v in one.items()} for one in headers]
        requests = [_unzipped(request) for request in receiver.requests[:1]]
        is_small = bool(requests) and sum(sizes) < len(REQUEST) / 2
        return delivered, receiver.paths[:1], headers, receiver.clients[:1], requests, is_small


def _unzipped(request: bytes) -> bytes:
    """Return a request without the time that gzip puts into it."""
    return request[:4] + request[8:] if request[:2] == b"\x1f\x8b" else request


def rows() -> list[Any]:
    by_protocol = {"grpc": (PLAIN | GRPC, TLS | TLS_GRPC), "http": (PLAIN | HTTP, TLS)}
    return [
        pytest.param(protocol, settings, is_tls, id=f"{protocol}: {name}")
        for protocol in PROTOCOLS
        for is_tls, group in enumerate(by_protocol[protocol])
        for name, settings in group.items()
    ]


@pytest.mark.parametrize(("protocol", "settings", "tls"), rows())
def test_the_same_arrives(protocol: str, settings: dict[str, str], tls: bool, pki: Path) -> None:
    theirs = arrived(send_official, protocol, settings, pki, tls=tls)
    ours = arrived(send_ours, protocol, settings, pki, tls=tls)
    assert ours == theirs
    refused = any("other.pem" in value or "none.pem" in value for value in settings.values())
    can_be = not tls or (not refused and "OTEL_EXPORTER_OTLP_CLIENT_KEY" in settings)
    assert ours[0] == (can_be or "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY" in settings)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_user_agent_is_ours(protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, receiver.endpoint(protocol))
    assert send_ours(protocol)
    assert receiver.headers[0]["user-agent"].startswith("stagetrace/")


# The encoder of exporters that a service makes itself.


def test_the_encoder_of_official_exporters_gives_the_same_message() -> None:
    module: Any = ModuleType("trace_encoder")
    module.encode_spans = official
    patched.patch_trace_encoder(module)
    assert module.encode_spans is not official
    assert module.encode_spans(SPANS) == official(SPANS)


def test_an_encoder_that_fails_gives_way_to_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise RuntimeError("the encoder is broken")

    monkeypatch.setattr("stagetrace.otlp.encode.encode_spans", fails)
    monkeypatch.setattr(guard, "failures", {})
    module: Any = ModuleType("trace_encoder")
    module.encode_spans = official
    patched.patch_trace_encoder(module)
    assert module.encode_spans(SPANS) == official(SPANS)
    assert guard.failures == {"stagetrace.otlp.encode": 1}


def test_activation_gives_it_to_both_exporters() -> None:
    code = """
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http
print(grpc.encode_spans.__module__, http.encode_spans.__module__)
"""
    done = run_python("-c", code, STAGETRACE="1")
    assert done.stdout.split() == ["stagetrace.patches.opentelemetry"] * 2
