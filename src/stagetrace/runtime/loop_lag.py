"""Hand measurements of event loops to the service's meter provider, or to our own sender."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.guard import guarded

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter


@guarded
def measure(meter: Meter, *, is_sent: bool) -> None:
    """Have event loops measured; `is_sent`: whether our own sender sends what the meter's provider does not."""
    from opentelemetry import metrics

    from stagetrace.sla.generation_metrics import NO_PROVIDERS, NOWHERE
    from stagetrace.sla.loop_lags import loop_lags
    from stagetrace.sla.metric_points import LOOP_LAG
    from stagetrace.sources import loop_lag

    if not is_sent and type(metrics.get_meter_provider()).__name__ in NO_PROVIDERS:
        return
    histogram = meter.create_histogram(LOOP_LAG.name, "s", LOOP_LAG.description)

    def take(took_ns: int) -> None:
        loop_lags.add(took_ns)
        histogram.record(took_ns / 1e9, None, NOWHERE)

    loop_lag.take = take
