"""The author's span processor refuses some spans: whoever ends one of those gets the exception."""

import os
from typing import Any

from ml import app
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


class RefusedError(Exception):
    """A span that breaks the author's rules."""


class Strict(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
        if span.name == "refused at its start":
            raise RefusedError(span.name)

    def on_end(self, span: Any) -> None:
        if span.name == "refused at its end" or "ml.stage" in span.attributes:
            raise RefusedError(span.name)


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=os.environ["SINK"], insecure=True)))
provider.add_span_processor(Strict())
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("own")


@app.get("/own/{name}")
def own(name: str) -> dict[str, str]:
    with tracer.start_as_current_span(name):
        return {"span": name}


__all__ = ["app"]
