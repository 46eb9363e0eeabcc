"""FastAPI services whose authors have done something of their own with OpenTelemetry, by the name in KIND."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ml
from fastapi import FastAPI, Request, Response
from opentelemetry import context, trace

kind = os.environ["KIND"]
logged: set[int] = set()
app: Any = ml.app


def exporting() -> Any:
    """Return a provider that exports to SINK."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = TracerProvider(resource=Resource.create({"service.name": "own-provider"}))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=os.environ["SINK"], insecure=True)))
    return made


def silent(**more: Any) -> Any:
    """Return a provider for the trace ids in the log, without an exporter."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    class Started(SpanProcessor):
        """Knows nothing of ended spans."""

        def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
            logging.getLogger(__name__).debug("%s begins", span.name)
            if span.kind is trace.SpanKind.SERVER:
                logged.add(span.get_span_context().trace_id)

    made = TracerProvider(**{"resource": Resource.create({"service.name": "silent-provider"}), **more})
    made.add_span_processor(Started())
    return made


def with_routes(**more: Any) -> FastAPI:
    """Return another application with the routes of `ml`."""
    made = FastAPI(**more)
    made.include_router(ml.app.router)
    return made


def set_in_lifespan(make: Any) -> FastAPI:
    """Return an application whose provider is set when the middleware stack is built already."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        provider = make()
        trace.set_tracer_provider(provider)
        yield
        provider.shutdown()

    return with_routes(lifespan=lifespan)


def announce_traces() -> None:
    from opentelemetry.instrumentation.propagators import TraceResponsePropagator, set_global_response_propagator

    set_global_response_propagator(TraceResponsePropagator())


if kind.startswith("silent"):

    @ml.app.get("/seen")
    async def seen() -> dict[str, str]:
        """Say which id goes into the log."""
        with trace.get_tracer("own").start_as_current_span("child"):
            pass
        span = trace.get_current_span()
        span.set_attribute("set.by", "handler")
        assert span.get_span_context().trace_id in logged
        return {"trace_id": f"{span.get_span_context().trace_id:032x}"}

    @ml.app.post("/export")
    def export() -> dict[str, bool]:
        """Add an exporter, long after the start."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        provider: Any = trace.get_tracer_provider()
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(os.environ["SINK"], insecure=True)))
        return {"ok": True}


if kind == "instrumentor":  # with its default spans; it leaves a path out
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    announce_traces()
    FastAPIInstrumentor.instrument_app(app, excluded_urls="plain")
elif kind in ("provider", "provider, the program inside a span"):
    trace.set_tracer_provider(exporting())
    if "inside" in kind:
        context.attach(trace.set_span_in_context(trace.get_tracer("main").start_span("the whole program")))
elif kind == "inside a span of an unknown provider":
    from opentelemetry.sdk.trace import TracerProvider

    span = TracerProvider().get_tracer("main").start_span("the whole program")
    context.attach(trace.set_span_in_context(span))
elif kind == "provider in the lifespan":
    app = set_in_lifespan(exporting)
elif kind == "middleware":
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app.add_middleware(OpenTelemetryMiddleware)
elif kind == "middleware around":
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app = OpenTelemetryMiddleware(ml.app)
elif kind == "FastAPI's telemetry":
    app = with_routes(telemetry={"tracer_provider": exporting()})
elif kind == "subclass":  # with middleware that runs each request in a task of its own
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

    class Service(FastAPI):
        pass

    class AddHeader(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            response = await call_next(request)
            response.headers["x-added"] = "yes"
            return response

    app = Service()
    app.include_router(ml.app.router)
    app.add_middleware(AddHeader)
elif kind == "silent provider":
    trace.set_tracer_provider(silent())
elif kind == "silent provider in the lifespan":
    app = set_in_lifespan(silent)
elif kind == "silent FastAPI's telemetry":
    app = with_routes(telemetry={"tracer_provider": silent()})
elif kind == "silent middleware":  # which is BentoML's, sampled by a rate of 0
    from opentelemetry import metrics
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased

    rate = os.environ.get("RATE")
    sampler = ALWAYS_ON if rate is None else ParentBased(TraceIdRatioBased(float(rate)))
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=silent(sampler=sampler, resource=Resource.create()))
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    announce_traces()

    @app.get("/counted")
    def counted() -> list[str]:
        """Return how often each HTTP histogram was recorded, whoever did."""
        data: Any = reader.get_metrics_data()
        metrics_of = [scope.metrics for resource in data.resource_metrics for scope in resource.scope_metrics]
        points = [(metric.name, point) for each in metrics_of for metric in each for point in metric.data.data_points]
        return [f"{name} {point.count}" for name, point in points if "http" in name and hasattr(point, "count")]


elif kind == "processor that raises":

    class RefusedError(Exception):
        """A span that breaks the author's rules."""

    from opentelemetry.sdk.trace import SpanProcessor

    class Strict(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
            if span.name == "refused at its start":
                raise RefusedError(span.name)

        def on_end(self, span: Any) -> None:
            if span.name == "refused at its end" or "ml.stage" in span.attributes:
                raise RefusedError(span.name)

    own_provider = exporting()
    own_provider.add_span_processor(Strict())
    trace.set_tracer_provider(own_provider)

    @app.get("/own/{name}")
    def own(name: str) -> dict[str, str]:
        with trace.get_tracer("own").start_as_current_span(name):
            return {"span": name}


elif kind == "mounted":
    app = FastAPI()
    app.mount("/v1", ml.app)

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"ok": True}


elif kind == "activated late":  # everything is imported, made and trained before
    from stagetrace.activate import activate

    activate()
else:
    raise ValueError(kind)
