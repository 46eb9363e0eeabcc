"""`gen_ai.server.*` metrics of the semantic conventions, if the service has set a meter provider.

One measurement a request that called generative models in this process, from its arrival on, before any sampling.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from stagetrace import semconv
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from stagetrace.request.generation import Generation

NO_PROVIDERS: Final = ("_ProxyMeterProvider", "NoOpMeterProvider")
# Outside the request's context: for an exemplar the SDK would ask the entry span for its open stage.
NOWHERE: Final = set_span_in_context(INVALID_SPAN, Context())
OF_CALL: Final[tuple[str, ...]] = (semconv.OPERATION_NAME, semconv.PROVIDER_NAME, semconv.REQUEST_MODEL)
# Boundaries in seconds, as the semantic conventions advise.
DURATION_S: Final = tuple(0.01 * 2**power for power in range(14))
FIRST_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class GenerationMetrics:
    """The three histograms."""

    def __init__(self) -> None:
        meter = metrics.get_meter("stagetrace")

        def histogram(name: str, description: str, boundaries: tuple[float, ...]) -> metrics.Histogram:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=boundaries
            )

        self._duration = histogram(
            semconv.METRIC_REQUEST_DURATION,
            "Generative AI server request duration such as time-to-last byte or last output token.",
            DURATION_S,
        )
        self._first = histogram(semconv.METRIC_TTFT, "Time to generate first token for successful responses.", FIRST_S)
        self._per_token = histogram(
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
            self._duration.record((end - start) / 1e9, {**attributes, semconv.ERROR_TYPE: error}, NOWHERE)
            return
        self._duration.record((end - start) / 1e9, attributes, NOWHERE)
        first, following = generation.first, generation.following
        if first is not None:
            self._first.record(max(first - start, 0) / 1e9, attributes, NOWHERE)
        if following:
            self._per_token.record(generation.following_ns / following / 1e9, attributes, NOWHERE)


@functools.cache
@guarded
def wanted() -> GenerationMetrics | None:
    """Return the metrics; None if no meter provider is set at the first request that generates."""
    return None if type(metrics.get_meter_provider()).__name__ in NO_PROVIDERS else GenerationMetrics()


@guarded
def conclude(generation: Generation | None, start: int, end: int) -> None:
    """Record a request that has ended."""
    measured = wanted()
    if measured is not None and generation is not None and generation.calls:
        measured.record(generation, start, end)
