"""The author has opentelemetry-instrumentation-fastapi in the code, with its default spans, and leaves a path out."""

from ml import app
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.propagators import TraceResponsePropagator, set_global_response_propagator

set_global_response_propagator(TraceResponsePropagator())
FastAPIInstrumentor.instrument_app(app, excluded_urls="plain")

__all__ = ["app"]
