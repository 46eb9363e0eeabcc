"""OpenTelemetry's SDK, set up by code for a service that ends by exit handlers."""

from collections.abc import Callable

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def set_up() -> list[Callable[[], object]]:
    """Set the providers of traces and metrics; return what shuts them down."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    meter_provider = MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())])
    metrics.set_meter_provider(meter_provider)
    return [provider.shutdown, meter_provider.shutdown]
