"""Metrics as an OTLP request: numbers and exponential histograms, cumulative since the process began to count."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from stagetrace.otlp.encode.span_encoder import resource_spans, span_prefix
from stagetrace.recording.spans import SCOPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.sdk.resources import Resource

    from stagetrace.sla.latency_histogram import Collected
    from stagetrace.sla.metric_points import Numbers, Times


def load() -> None:
    """Import what the functions below need: under gevent, threads of ours must not import anything."""
    import opentelemetry.proto.metrics.v1.metrics_pb2  # noqa: F401


def message(
    resource: Resource, numbers: Iterable[Numbers], times: Iterable[Times], since_ns: int, now_ns: int
) -> bytes | None:
    """Return a serialized ExportMetricsServiceRequest; None where there is no point to send."""
    made = [_numbers(one, since_ns, now_ns) for one in numbers] + [_times(one, since_ns, now_ns) for one in times]
    encoded = [one.SerializeToString() for one in made if one is not None]
    # Resource, scope and what they hold have the same numbers of fields as in a request of spans.
    return resource_spans(resource, {SCOPE: [span_prefix(len(one)) + one for one in encoded]}) if encoded else None


def _numbers(metric: Numbers, since_ns: int, now_ns: int) -> Any:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, NumberDataPoint, Sum

    points = []
    for attributes, value in metric.read():
        number: Any = {"as_int": value} if isinstance(value, int) else {"as_double": value}
        start = since_ns if metric.is_counter else 0
        pairs = _pairs(attributes)
        points.append(NumberDataPoint(attributes=pairs, start_time_unix_nano=start, time_unix_nano=now_ns, **number))
    if not points:
        return None
    if metric.is_counter:
        data: Any = {"sum": Sum(data_points=points, aggregation_temporality=_CUMULATIVE, is_monotonic=True)}  # type: ignore[arg-type]
    else:
        data = {"gauge": Gauge(data_points=points)}
    return Metric(name=metric.name, description=metric.description, unit=metric.unit, **data)


_CUMULATIVE = 2


def _times(metric: Times, since_ns: int, now_ns: int) -> Any:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogram, Metric

    points = [_point(attributes, found, since_ns, now_ns) for attributes, found in metric.read()]
    if not points:
        return None
    histogram = ExponentialHistogram(data_points=points, aggregation_temporality=_CUMULATIVE)  # type: ignore[arg-type]
    return Metric(name=metric.name, description=metric.description, unit="s", exponential_histogram=histogram)


def _point(attributes: Mapping[str, Any], found: Collected, since_ns: int, now_ns: int) -> Any:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, ExponentialHistogramDataPoint

    exemplars = [
        Exemplar(
            as_double=max(took_ns, 0) / 1e9,
            time_unix_nano=at_ns,
            trace_id=trace[0].to_bytes(16, "big"),
            span_id=trace[1].to_bytes(8, "big"),
        )
        # In order of time: Prometheus discards a series' exemplars where one is older than that before it.
        for took_ns, at_ns, trace in sorted(found.exemplars, key=itemgetter(1))
    ]
    return ExponentialHistogramDataPoint(
        attributes=_pairs(attributes),
        start_time_unix_nano=since_ns,
        time_unix_nano=now_ns,
        count=found.number,
        sum=found.sum,
        min=found.least,
        max=found.most,
        zero_count=found.zeros,
        scale=found.scale,
        positive=ExponentialHistogramDataPoint.Buckets(offset=found.first, bucket_counts=found.buckets),
        exemplars=exemplars,
    )


def _pairs(attributes: Mapping[str, Any]) -> list[Any]:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    return [
        KeyValue(key=key, value=AnyValue(bool_value=value) if value is True else AnyValue(string_value=value))
        for key, value in attributes.items()
    ]
