"""The author has a TracerProvider for the trace ids in the log, and no exporter."""

import logging
import os
from typing import Any

import ml
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

logged: set[int] = set()


class Started(SpanProcessor):
    """Knows nothing of ended spans."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
        logging.getLogger(__name__).debug("%s begins", span.name)
        if span.kind is trace.SpanKind.SERVER:
            logged.add(span.get_span_context().trace_id)


def make() -> TracerProvider:
    """Return such a provider."""
    made = TracerProvider(resource=Resource.create({"service.name": "silent-provider"}))
    made.add_span_processor(Started())
    return made


app = ml.app
if os.environ.get("GLOBAL", "1") == "1":
    trace.set_tracer_provider(make())


@app.get("/seen")
async def seen() -> dict[str, str]:
    """Say which id goes into the log."""
    with trace.get_tracer("own").start_as_current_span("child"):
        pass
    span = trace.get_current_span()
    span.set_attribute("set.by", "handler")
    assert span.get_span_context().trace_id in logged
    return {"trace_id": f"{span.get_span_context().trace_id:032x}"}


@app.post("/export")
def export() -> dict[str, bool]:
    """Add an exporter, long after the start."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(os.environ["SINK"], insecure=True)))
    return {"ok": True}
