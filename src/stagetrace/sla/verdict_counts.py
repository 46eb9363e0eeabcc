"""The number of judged requests by verdict, beside the objectives: as metrics; and in the log as a process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace import log

if TYPE_CHECKING:
    from opentelemetry import metrics

    from stagetrace.sla.metric_points import Numbers

_logged: dict[tuple[str, str], int] = {}


def offer(meter: metrics.Meter) -> None:
    """Offer the counts of judged requests and of causes, and the objectives, as metrics of this meter."""
    from stagetrace.sla.metric_points import NUMBERS

    for metric in NUMBERS:
        create = meter.create_observable_counter if metric.is_counter else meter.create_observable_gauge
        create(metric.name, [_observing(metric)], metric.unit, metric.description)


def _observing(metric: Numbers) -> Any:
    from opentelemetry.metrics import Observation

    def observe(_options: Any) -> list[Observation]:
        return [Observation(value, attributes) for attributes, value in metric.read()]

    return observe


def log_counts() -> None:
    """Log how many requests were judged, and how; equal counts only once."""
    from stagetrace.sla.process import counter

    global _logged  # noqa: PLW0603
    counts = counter().counts()
    if counts and counts != _logged:
        _logged = counts
        by_verdict = {"good": 0, "breach": 0, "excluded": 0}
        for (_, verdict), count in counts.items():
            by_verdict[verdict] += count
        judged, excluded = by_verdict["good"] + by_verdict["breach"], by_verdict["excluded"]
        also = f"; {excluded} were excluded" if excluded else ""
        log.info(f"judged {judged} requests, {by_verdict['breach']} missed their objective{also}")
