"""The service of SERVICE, traced as OpenTelemetry's documentation shows: its SDK and instrumentation, set up by code."""

import os

from stock_sdk import set_up

shutdowns = set_up()
if os.environ["SERVICE"] == "semantics":
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from semantics import app, at_the_end

    at_the_end += shutdowns
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
elif os.environ["SERVICE"] == "semantics_flask":
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from semantics_flask import app, flask_app, sub

    FlaskInstrumentor().instrument_app(flask_app)
    FlaskInstrumentor().instrument_app(sub)
else:
    os.environ["INSTRUMENTED"] = "1"
    from semantics_django import app

__all__ = ["app"]
