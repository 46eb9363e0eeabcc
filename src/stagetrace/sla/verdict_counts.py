"""The number of judged requests by verdict, beside the objectives: as metrics; and in the log as a process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace import log

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry import metrics

    from stagetrace.sla.objective import Objective
    from stagetrace.sla.verdict_counter import Counted

OVERFLOW: Final = "otel.metric.overflow"  # OpenTelemetry's own name

_logged: dict[tuple[str, str], int] = {}


def offer(meter: metrics.Meter) -> None:
    """Offer the counts of judged requests and of causes, and the objectives, as metrics of this meter."""
    from opentelemetry import metrics

    from stagetrace import semconv
    from stagetrace.semconv import SLA_BREACH_CAUSE, SLA_OBJECTIVE
    from stagetrace.sla.objective import NEVER_NS
    from stagetrace.sla.process import counter

    def observe(_options: Any) -> list[metrics.Observation]:
        return [metrics.Observation(count, attributes(key)) for key, count in counter().points().items()]

    def observe_causes(_options: Any) -> list[metrics.Observation]:
        return [
            metrics.Observation(count, {SLA_OBJECTIVE: objective, SLA_BREACH_CAUSE: cause})
            for (objective, cause), count in counter().causes().items()
        ]

    def observe_targets(_options: Any) -> list[metrics.Observation]:
        return [metrics.Observation(rule.target, {SLA_OBJECTIVE: rule.name}) for rule in _objectives()]

    def observe_thresholds(_options: Any) -> list[metrics.Observation]:
        return [
            metrics.Observation(rule.within_ns / 1e6, {SLA_OBJECTIVE: rule.name})
            for rule in _objectives()
            if rule.within_ns != NEVER_NS
        ]

    count, gauge = meter.create_observable_counter, meter.create_observable_gauge
    count(semconv.METRIC_REQUESTS, [observe], "{request}", "Judged requests by objective and verdict.")
    count(semconv.METRIC_BREACHES, [observe_causes], "{request}", "Breaches by objective and cause.")
    gauge(semconv.METRIC_TARGET, [observe_targets], "1", "The share of its requests that an objective wants good.")
    gauge(semconv.METRIC_THRESHOLD, [observe_thresholds], "ms", "The time within which an objective wants a response.")


def _objectives() -> Iterable[Objective]:
    """Return what judges requests; of objectives with one name the first, which alone does."""
    from stagetrace.sla.process import policy

    used = policy()
    rules = [rule for rule in used.objectives if not rule.excludes] if used else []
    return {rule.name: rule for rule in reversed(rules)}.values()


def attributes(key: Counted) -> dict[str, Any]:
    """Return the attributes of one point of the metric `sla.requests`."""
    from stagetrace import semconv

    found: dict[str, Any] = {semconv.SLA_OBJECTIVE: key.objective, semconv.SLA_VERDICT: key.verdict}
    if key.route:
        found["http.route" if key.route.startswith("/") else "rpc.method"] = key.route
    if key.stage:
        found[semconv.SLA_BREACH_STAGE] = key.stage
    if key.segment:
        found[semconv.SLA_SEGMENT] = key.segment
    if key.overflow:
        found[OVERFLOW] = True
    return found


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
