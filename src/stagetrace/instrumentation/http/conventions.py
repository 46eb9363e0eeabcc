"""What the HTTP adapters share: OpenTelemetry's context keys and modules, and why a response is incomplete."""

from __future__ import annotations

from typing import Final

from opentelemetry import context as otel_context

# The keys that opentelemetry-instrumentation's suppress_http_instrumentation() and suppress_instrumentation() set.
SUPPRESS_KEYS: Final = (otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY, otel_context._SUPPRESS_INSTRUMENTATION_KEY)
# A program that has set a global response propagator has imported this module.
PROPAGATORS: Final = "opentelemetry.instrumentation.propagators"
# Why a response is incomplete: the client disconnected, or the server cancelled the request.
CLIENT: Final = "client"
CANCELLED: Final = "cancelled"
