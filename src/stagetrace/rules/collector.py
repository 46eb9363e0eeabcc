"""A section for the OpenTelemetry Collector: it keeps the traces of all breaches, and counts spans before that."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from stagetrace import semconv
from stagetrace.policy.objective import NEVER_NS
from stagetrace.rules.base import Format, RulesOptions, yaml_of
from stagetrace.rules.burn import judged
from stagetrace.rules.prometheus import comment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.policy.policy import Policy

KEPT_PERCENT: Final = "${env:SLA_KEPT_PERCENT:-10}"  # of traces without a breach
# As collector-config/collector.yaml has them, which a test compares.
BUCKETS_MS: Final = (
    *(1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750),
    *(1_000, 1_500, 2_000, 3_000, 5_000, 10_000, 30_000, 60_000),
)
DIMENSIONS: Final = (
    *(semconv.ML_STAGE, "http.route", "rpc.method"),
    *(semconv.SLA_BREACHED, semconv.SLA_BREACH_STAGE, semconv.SLA_BREACH_CAUSE),
)
# A service sends a span up to five seconds after its end (OTEL_BSP_SCHEDULE_DELAY).
_SENT_WITHIN_S: Final = 5
_SLOWEST: Final = 4  # times its objective: a request that is slower may be judged before its last span is there
_LEAST_WAIT_S: Final = 10
_MS: Final = 1_000_000
_TAIL_SAMPLING: Final = {
    "num_traces": 50_000,
    # Spans that come later than that follow their trace.
    "decision_cache": {"sampled_cache_size": 100_000, "non_sampled_cache_size": 100_000},
    "policies": [
        {
            "name": "breaches",
            "type": "boolean_attribute",
            "boolean_attribute": {"key": semconv.SLA_BREACHED, "value": True},
        },
        {
            "name": "share of the others",
            "type": "probabilistic",
            "probabilistic": {"sampling_percentage": KEPT_PERCENT},
        },
    ],
}
# Both receive all spans: one counts them, the other keeps some.
_PIPELINES: Final = {
    "traces/counted": {"receivers": ["otlp"], "processors": ["memory_limiter"], "exporters": ["spanmetrics"]},
    "traces": {"receivers": ["otlp"], "processors": ["memory_limiter", "tail_sampling"], "exporters": ["otlp_grpc"]},
}
_ABOUT: Final = """
Give it to the Collector behind your own configuration, whose lists it replaces:

otelcol --config collector.yaml --config this-file.yaml

The receiver `otlp`, the processor `memory_limiter`, the exporter `otlp_grpc` of traces and a pipeline of metrics with
the receiver `spanmetrics` are those of your configuration; stagetrace's collector-config/collector.yaml has them.

Kept are all traces with a breach, and of the others the share SLA_KEPT_PERCENT (10 unless it is set). `spanmetrics`
counts spans before that, and `sla.requests` of the services is exact: sampling changes no verdict and no alert.

A trace is judged {wait} s after its first span: then all spans of a request are there that takes up to {slowest} times
as long as the longest objective allows and was sent within {sent} s. Until then they are in memory: `num_traces` has to
be above the number of new traces in {wait} s, or the oldest are judged early.

All spans of a trace have to reach the same Collector. With several, put Collectors in front that choose by the trace:

exporters: {{loadbalancing: {{routing_key: traceID, protocol: {{otlp: {{}}}}, resolver: {{dns: {{hostname: NAME}}}}}}}}
"""


def render(policy: Policy, options: RulesOptions) -> str:
    """Return a configuration of the Collector, to be given beside that of its receivers and exporters."""
    del options
    wait_s = decision_wait_s(policy)
    about = _ABOUT.format(wait=wait_s, slowest=_SLOWEST, sent=_SENT_WITHIN_S)
    return yaml_of(
        {
            "processors": {"tail_sampling": {"decision_wait": f"{wait_s}s", **_TAIL_SAMPLING}},
            "connectors": {
                "spanmetrics": {
                    "dimensions": [{"name": name} for name in DIMENSIONS],
                    "histogram": {"unit": "ms", "explicit": {"buckets": buckets(policy)}},
                    "exemplars": {"enabled": True, "max_per_data_point": 2},
                    "aggregation_cardinality_limit": 5_000,
                }
            },
            "service": {"pipelines": _PIPELINES},
        },
        comment=f"{comment(policy)}\n{about}",
    )


def decision_wait_s(policy: Policy) -> int:
    """Return how long the spans of a trace are waited for, by the longest objective."""
    longest_s = max(_bounds_ns(policy), default=0) / 1e9
    return max(_LEAST_WAIT_S, math.ceil(_SLOWEST * longest_s) + _SENT_WITHIN_S)


def buckets(policy: Policy) -> list[str]:
    """Return the bounds of the histogram: the usual ones, and that of each objective, so that its share is exact."""
    bounds = sorted({*(one * _MS for one in BUCKETS_MS), *_bounds_ns(policy)})
    return [_duration(one) for one in bounds]


def _bounds_ns(policy: Policy) -> Iterator[int]:
    for one in judged(policy):
        if one.within_ns != NEVER_NS:
            yield one.within_ns


def _duration(nanoseconds: int) -> str:
    if nanoseconds % _MS:
        return f"{nanoseconds // 1_000}us" if nanoseconds % 1_000 == 0 else f"{nanoseconds}ns"
    milliseconds = nanoseconds // _MS
    return f"{milliseconds // 1_000}s" if milliseconds % 1_000 == 0 else f"{milliseconds}ms"


FORMAT = Format("collector", "the Collector's section: it keeps all breaches, and counts before that", ".yaml", render)
