"""`semantics_django`, traced as OpenTelemetry's documentation shows: its SDK and DjangoInstrumentor, set up by code."""

import os

from stock_sdk import set_up

set_up()
os.environ["INSTRUMENTED"] = "1"
from semantics_django import app  # noqa: E402

__all__ = ["app"]
