"""How many requests were judged, and how: as metrics, and in words as a process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace import log

if TYPE_CHECKING:
    from opentelemetry import metrics

_said: dict[tuple[str, str], int] = {}


def offer() -> None:
    """Offer the count of judged requests as a metric to whatever meter provider there is or will be."""
    from opentelemetry import metrics

    from stagetrace.instrumentation.opentelemetry.sdk import counter
    from stagetrace.otlp.export.factory import offer_counts
    from stagetrace.semconv import METRIC_BREACHES, METRIC_REQUESTS, SLA_BREACH_CAUSE, SLA_OBJECTIVE

    def observe(_options: Any) -> list[metrics.Observation]:
        return [
            metrics.Observation(count, attributes(objective, verdict, route))
            for (objective, verdict, route), count in counter().by_route().items()
        ]

    def observe_causes(_options: Any) -> list[metrics.Observation]:
        return [
            metrics.Observation(count, {SLA_OBJECTIVE: objective, SLA_BREACH_CAUSE: cause})
            for (objective, cause), count in counter().causes().items()
        ]

    meter = metrics.get_meter("stagetrace")
    offer_counts(meter)
    meter.create_observable_counter(
        METRIC_REQUESTS, [observe], unit="{request}", description="Judged requests by objective and verdict."
    )
    meter.create_observable_counter(
        METRIC_BREACHES, [observe_causes], unit="{request}", description="Breaches by objective and cause."
    )


def attributes(objective: str, verdict: str, route: str) -> dict[str, str]:
    """Return what the metric says of the requests under one objective, verdict and route (an RPC's is its method)."""
    from stagetrace.semconv import SLA_OBJECTIVE, SLA_VERDICT

    place = {"http.route" if route.startswith("/") else "rpc.method": route} if route else {}
    return {SLA_OBJECTIVE: objective, SLA_VERDICT: verdict, **place}


def say() -> None:
    """Say how many requests were judged, and how; once of the same ones."""
    from stagetrace.instrumentation.opentelemetry.sdk import counter

    global _said  # noqa: PLW0603
    counts = counter().counts()
    if counts and counts != _said:
        _said = counts
        by_verdict = {"good": 0, "breach": 0, "excluded": 0}
        for (_, verdict), count in counts.items():
            by_verdict[verdict] += count
        judged, excluded = by_verdict["good"] + by_verdict["breach"], by_verdict["excluded"]
        besides = f"; {excluded} were excluded" if excluded else ""
        log.info(f"judged {judged} requests, {by_verdict['breach']} missed their objective{besides}")
