"""Metrics for the meter provider that the service has set: of HTTP, of generative models, and our own counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Observation
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from stagetrace import semconv
from stagetrace.bridge.entry import seen
from stagetrace.guard import guarded, guarded_end

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.request.generation import Generation
    from stagetrace.request.request import Request
    from stagetrace.sla.metric_points import Numbers

# Outside the request's context: for an exemplar the SDK would ask the entry span for its open stage. Not empty: the SDK
# takes an empty one for none.
NOWHERE: Final = set_span_in_context(INVALID_SPAN, Context())
NO_PROVIDERS: Final = ("_ProxyMeterProvider", "NoOpMeterProvider")

# An API before 1.30 takes no context, for it has no exemplars.
OUTSIDE: Final = (NOWHERE,) if "context" in metrics.Histogram.record.__code__.co_varnames else ()


def has_provider() -> bool:
    """Return whether a meter provider is set."""
    return type(metrics.get_meter_provider()).__name__ not in NO_PROVIDERS


def _histogram(name: str, description: str, boundaries: tuple[float, ...]) -> metrics.Histogram:
    meter = metrics.get_meter("stagetrace")
    try:
        return meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=boundaries
        )
    except TypeError:  # of an API before 1.30
        return meter.create_histogram(name, unit="s", description=description)


ACTIVE_ATTRIBUTES = ("http.request.method", "url.scheme")
DURATION_ATTRIBUTES = (
    *ACTIVE_ATTRIBUTES,
    *("http.route", "http.response.status_code", "error.type", "network.protocol.version"),
)
# Seconds, as the semantic conventions advise.
BOUNDARIES_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class HttpMetrics:
    """`http.server.request.duration` and `http.server.active_requests`, taken before any sampling."""

    def __init__(self) -> None:
        self._active = metrics.get_meter("stagetrace").create_up_down_counter(
            "http.server.active_requests", "{request}", "Number of active HTTP server requests."
        )
        self._duration = _histogram("http.server.request.duration", "Duration of HTTP server requests.", BOUNDARIES_S)

    @guarded
    def begin(self, attributes: Mapping[str, Any]) -> None:
        """Count a request that was received, by the entry span's attributes."""
        # Outside the request's context: for an exemplar the SDK would ask the entry span for its open stage.
        self._active.add(1, _only(ACTIVE_ATTRIBUTES, attributes), *OUTSIDE)

    @guarded_end
    def uncount(self, attributes: Mapping[str, Any]) -> None:
        """Take back the count of a request: another instrumentation counts it."""
        self._active.add(-1, _only(ACTIVE_ATTRIBUTES, attributes), *OUTSIDE)

    @guarded_end
    def end(self, attributes: Mapping[str, Any], duration_s: float, request: Request | None) -> None:
        """Count a request that has ended: `request`, if its entry span is to be an exemplar."""
        self._active.add(-1, _only(ACTIVE_ATTRIBUTES, attributes), *OUTSIDE)
        around = OUTSIDE if request is None or not OUTSIDE else (set_span_in_context(seen(request), NOWHERE),)
        self._duration.record(duration_s, _only(DURATION_ATTRIBUTES, attributes), *around)


def _only(names: tuple[str, ...], attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attributes[name] for name in names if name in attributes}


OF_CALL: Final[tuple[str, ...]] = (semconv.OPERATION_NAME, semconv.PROVIDER_NAME, semconv.REQUEST_MODEL)
# Boundaries in seconds, as the semantic conventions advise.
DURATION_S: Final = tuple(0.01 * 2**power for power in range(14))
FIRST_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class GenerationMetrics:
    """The three histograms."""

    def __init__(self) -> None:
        self._duration = _histogram(
            semconv.METRIC_REQUEST_DURATION,
            "Generative AI server request duration such as time-to-last byte or last output token.",
            DURATION_S,
        )
        self._first = _histogram(semconv.METRIC_TTFT, "Time to generate first token for successful responses.", FIRST_S)
        self._per_token = _histogram(
            semconv.METRIC_TPOT,
            "Time per output token generated after the first token for successful responses.",
            PER_TOKEN_S,
        )

    def record(self, generation: Generation, start: int, end: int) -> None:
        """Record a request from `start` to `end`, in nanoseconds since the epoch; its first call names the model."""
        calls = generation.calls
        if (
            semconv.OPERATION_NAME not in calls[0].attributes
        ):  # noted by hand: what the conventions require is not known
            return
        attributes: dict[str, Any] = {
            name: calls[0].attributes[name] for name in OF_CALL if name in calls[0].attributes
        }
        error = next((call.error for call in calls if call.error is not None), None)
        if error is not None:
            self._duration.record((end - start) / 1e9, {**attributes, semconv.ERROR_TYPE: error}, *OUTSIDE)
            return
        self._duration.record((end - start) / 1e9, attributes, *OUTSIDE)
        first, following = generation.first, generation.following
        if first is not None:
            self._first.record(max(first - start, 0) / 1e9, attributes, *OUTSIDE)
        if following:
            self._per_token.record(generation.following_ns / following / 1e9, attributes, *OUTSIDE)


def generation_metrics() -> GenerationMetrics | None:
    """Return the metrics of generative models; None if no meter provider is set."""
    return GenerationMetrics() if has_provider() else None


# --- Our own counts, for the present or a later meter provider.


def offer(*, is_sent: bool) -> None:
    """Offer our counts as metrics; `is_sent`: whether our own sender sends what the meter's provider does not."""
    from stagetrace.otlp.export.batch_processor import offer_counts
    from stagetrace.sla.metric_points import LOOP_LAG, NUMBERS, loop_lags
    from stagetrace.sources import loops

    meter = metrics.get_meter("stagetrace")
    offer_counts(meter, Observation)
    for metric in NUMBERS:
        create = meter.create_observable_counter if metric.is_counter else meter.create_observable_gauge
        create(metric.name, [_observing(metric)], metric.unit, metric.description)
    if not is_sent and not has_provider():
        return
    histogram = meter.create_histogram(LOOP_LAG.name, "s", LOOP_LAG.description)

    def take(took_ns: int) -> None:
        loop_lags.add(took_ns)
        histogram.record(took_ns / 1e9, None, *OUTSIDE)

    loops.take = take


def _observing(metric: Numbers) -> Any:
    def observe(_options: Any) -> list[Observation]:
        return [Observation(value, attributes) for attributes, value in metric.read()]

    return observe
