"""The official exporter and ours with the same variables: whether each delivers, and what arrives of it."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from otlp.receiver import run_receiver
from otlp.sending import sdk_spans
from stagetrace.otlp.export.batch_processor import open_transport
from stagetrace.otlp.export.client import ExportClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SPANS = sdk_spans(200)
REQUEST = official(SPANS).SerializeToString()
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
UNSET = (*PROXIES, *map(str.lower, PROXIES), "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC")
# Of headers: ours, the length of gzip with a time in it, and that a response, of some bytes, is not to be compressed.
UNSENT = ("user-agent", "content-length", "accept-encoding")


def variables(**values: str) -> dict[str, str]:
    return {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in values.items()}


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
            for name in UNSET:
                patch.delenv(name, raising=False)
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
