"""The author has opentelemetry-instrumentation-fastapi in the code, with its default spans."""

from ml import app
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

FastAPIInstrumentor.instrument_app(app)

__all__ = ["app"]
