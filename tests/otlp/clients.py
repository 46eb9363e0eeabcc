"""Clients for a receiver, requests for them to send, and when a receiver asks them to come back."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc import StatusCode
from opentelemetry.sdk.trace import TracerProvider

from otlp.receiver import Receiver
from stagetrace.otlp.encode import encode_span, resource_spans
from stagetrace.otlp.export.batch_processor import open_transport
from stagetrace.otlp.export.client import ExportClient

PROTOCOLS = ["grpc", "http"]


def request(*span_names: str) -> bytes:
    provider = TracerProvider(shutdown_on_exit=False)
    spans: list[Any] = [provider.get_tracer("t").start_span(name) for name in span_names]
    for span in spans:
        span.end()
    encoded = [encode_span(span) for span in spans]
    return resource_spans(provider.resource, {spans[0].instrumentation_scope: encoded})


def client(protocol: str, endpoint: str | Receiver, timeout: float = 5) -> ExportClient:
    """Return a client whose transport is open."""
    if isinstance(endpoint, Receiver):
        endpoint = endpoint.endpoint(protocol)
    made = ExportClient(partial(open_transport, f"otlp_proto_{protocol}"), "there")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(timeout))
        assert made.load(), made._failure
    return made


def retry_info(seconds: float, form: str) -> tuple[tuple[str, bytes], ...]:
    info = RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = int(seconds), int(seconds % 1 * 1e9)
    if form == "alone":
        return (("google.rpc.retryinfo-bin", info.SerializeToString()),)
    detail = Packed()
    detail.Pack(info)
    status = Status(code=StatusCode.RESOURCE_EXHAUSTED.value[0], message="full", details=[detail])
    return (("grpc-status-details-bin", status.SerializeToString()),)
