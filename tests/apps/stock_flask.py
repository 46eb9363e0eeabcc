"""`semantics_flask`, traced as OpenTelemetry's documentation shows: its SDK and FlaskInstrumentor, set up by code."""

from opentelemetry.instrumentation.flask import FlaskInstrumentor
from semantics_flask import app, flask_app, sub
from stock_sdk import set_up

set_up()
FlaskInstrumentor().instrument_app(flask_app)
FlaskInstrumentor().instrument_app(sub)

__all__ = ["app"]
