"""The number of judged requests by verdict: as metrics, and in the log as a process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace import log

if TYPE_CHECKING:
    from opentelemetry import metrics

_logged: dict[tuple[str, str], int] = {}


def offer(meter: metrics.Meter) -> None:
    """Offer the counts of judged requests and of causes as metrics of this meter."""
    from opentelemetry import metrics

    from stagetrace.semconv import METRIC_BREACHES, METRIC_REQUESTS, SLA_BREACH_CAUSE, SLA_OBJECTIVE
    from stagetrace.sla.process import counter

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

    meter.create_observable_counter(
        METRIC_REQUESTS, [observe], unit="{request}", description="Judged requests by objective and verdict."
    )
    meter.create_observable_counter(
        METRIC_BREACHES, [observe_causes], unit="{request}", description="Breaches by objective and cause."
    )


def attributes(objective: str, verdict: str, route: str) -> dict[str, str]:
    """Return the metric's attributes for one objective, verdict and route (the route of an RPC is its method)."""
    from stagetrace.semconv import SLA_OBJECTIVE, SLA_VERDICT

    place = {"http.route" if route.startswith("/") else "rpc.method": route} if route else {}
    return {SLA_OBJECTIVE: objective, SLA_VERDICT: verdict, **place}


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
