"""The official exporters, watched or not, what they are given to send, and when a receiver tells them to come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc import StatusCode
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider

from otlp.receiver import Receiver
from stagetrace.otlp.encode.span_encoder import encode_span, resource_spans
from stagetrace.otlp.export.exporter import CountingExporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PROTOCOLS = ["grpc", "http"]


def request(*span_names: str) -> bytes:
    provider = TracerProvider(shutdown_on_exit=False)
    spans = [provider.get_tracer("t").start_span(name) for name in span_names]
    for span in spans:
        span.end()
    encoded = [encode_span(span) for span in spans]  # type: ignore[arg-type]
    return resource_spans(provider.resource, {spans[0].instrumentation_scope: encoded})  # type: ignore[attr-defined]


def official(protocol: str, endpoint: str | Receiver, timeout: float = 5) -> SpanExporter:
    if protocol == "grpc":
        return GrpcExporter(endpoint=endpoint.grpc if isinstance(endpoint, Receiver) else endpoint, timeout=timeout)
    url = endpoint.http if isinstance(endpoint, Receiver) else endpoint
    return HttpExporter(endpoint=f"{url}/v1/traces", timeout=timeout)


def watched(protocol: str, endpoint: str | Receiver, timeout: float = 5) -> CountingExporter:
    exporter = CountingExporter(official(protocol, endpoint, timeout), "there")
    exporter.watch()
    assert exporter._watch is not None
    return exporter


def retry_info(seconds: float, form: str) -> tuple[tuple[str, bytes], ...]:
    info = RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = int(seconds), int(seconds % 1 * 1e9)
    if form == "alone":
        return (("google.rpc.retryinfo-bin", info.SerializeToString()),)
    detail = Packed()
    detail.Pack(info)
    status = Status(code=StatusCode.RESOURCE_EXHAUSTED.value[0], message="full", details=[detail])
    return (("grpc-status-details-bin", status.SerializeToString()),)
