"""Flask and Django services whose authors have done something of their own with OpenTelemetry, by the name in KIND."""

import os
from typing import Any

kind, _, silent = os.environ["KIND"].partition(", ")
provider: Any = None

if kind == "a provider of one's own":
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    if not silent:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
elif silent:  # of the instrumentation alone
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider()

if kind == "Flask instrumented before":
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    FlaskInstrumentor().instrument(tracer_provider=provider)

from flask_ml import app as flask_app  # noqa: E402

app: Any = flask_app

if kind in ("Flask instrumented", "Flask instrumented and hidden"):
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    FlaskInstrumentor().instrument_app(flask_app, tracer_provider=provider)
elif kind == "WSGI middleware within":
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    flask_app.wsgi_app = OpenTelemetryMiddleware(flask_app.wsgi_app)  # type: ignore[method-assign]
elif kind == "WSGI middleware around":
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    app = OpenTelemetryMiddleware(flask_app, tracer_provider=provider)

if kind == "Flask instrumented and hidden":

    def app(environ: Any, start_response: Any) -> Any:
        return flask_app(environ, start_response)


if kind == "several middlewares":
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.middleware.proxy_fix import ProxyFix

    app = ProxyFix(DispatcherMiddleware(ProxyFix(flask_app), {"/nothing": flask_app}))

if kind in ("in FastAPI by Starlette", "in FastAPI by a2wsgi"):
    from fastapi import FastAPI

    if kind == "in FastAPI by Starlette":
        from starlette.middleware.wsgi import WSGIMiddleware
    else:
        from a2wsgi import WSGIMiddleware

    app = FastAPI()
    app.mount("/", WSGIMiddleware(flask_app))
