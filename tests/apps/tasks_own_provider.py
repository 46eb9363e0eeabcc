"""The tasks, with a tracer provider as OpenTelemetry's documentation has it for Celery: set as a worker process starts."""

from typing import Any

from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from tasks import api, queue

__all__ = ("api", "queue")


@worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
def set_up(**_: Any) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "own"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
