"""HTTP metrics of the semantic conventions, if the service has set a meter provider."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.semconv._incubating.metrics.http_metrics import create_http_server_active_requests
from opentelemetry.semconv.metrics.http_metrics import HTTP_SERVER_REQUEST_DURATION
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from stagetrace.guard import guarded, guarded_end

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span

ACTIVE_ATTRIBUTES = ("http.request.method", "url.scheme")
DURATION_ATTRIBUTES = (
    *ACTIVE_ATTRIBUTES,
    *("http.route", "http.response.status_code", "error.type", "network.protocol.version"),
)
# Seconds, as the semantic conventions advise.
BOUNDARIES_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
NOWHERE = set_span_in_context(INVALID_SPAN, Context())  # not empty: the SDK takes an empty one for none
NOBODY = ("_ProxyMeterProvider", "NoOpMeterProvider")


class HttpMetrics:
    """`http.server.request.duration` and `http.server.active_requests`, taken before any sampling."""

    def __init__(self) -> None:
        meter = metrics.get_meter("stagetrace")
        self._active = create_http_server_active_requests(meter)
        self._duration = meter.create_histogram(
            HTTP_SERVER_REQUEST_DURATION,
            unit="s",
            description="Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=BOUNDARIES_S,
        )

    @guarded
    def begin(self, attributes: Mapping[str, Any]) -> None:
        """Count a request that was received, by the entry span's attributes."""
        # Outside the request's context: for an exemplar the SDK would ask the entry span for its open stage.
        self._active.add(1, _only(ACTIVE_ATTRIBUTES, attributes), NOWHERE)

    @guarded_end
    def uncount(self, attributes: Mapping[str, Any]) -> None:
        """Take back the count of a request: another instrumentation counts it."""
        self._active.add(-1, _only(ACTIVE_ATTRIBUTES, attributes), NOWHERE)

    @guarded_end
    def end(self, attributes: Mapping[str, Any], duration_s: float, span: Span) -> None:
        """Count a request that has ended; `span` is its entry span, for exemplars."""
        self._active.add(-1, _only(ACTIVE_ATTRIBUTES, attributes), NOWHERE)
        # A span without identity at its end was dropped by the sampler, and is no exemplar.
        context = set_span_in_context(span, NOWHERE) if getattr(span, "has_identity", True) else NOWHERE
        self._duration.record(duration_s, _only(DURATION_ATTRIBUTES, attributes), context)


@functools.cache
@guarded
def wanted() -> HttpMetrics | None:
    """Return the metrics of requests; None if no meter provider is set at the first request."""
    return None if type(metrics.get_meter_provider()).__name__ in NOBODY else HttpMetrics()


def _only(names: tuple[str, ...], attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attributes[name] for name in names if name in attributes}
