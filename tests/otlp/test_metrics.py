"""Metrics are encoded to the message that protobuf's own classes make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Exemplar,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Metric,
    NumberDataPoint,
    Sum,
)

from stagetrace.otlp.metrics import encode_numbers, encode_times
from stagetrace.sla.verdict_counter import Collected

if TYPE_CHECKING:
    from collections.abc import Mapping

SINCE, NOW = 1_700_000_000_000_000_000, 1_700_000_060_000_000_000
ATTRIBUTES = st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.just(value=True), max_size=3)
UNSIGNED = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e9)
POINTS = st.lists(st.tuples(ATTRIBUTES, st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)), max_size=3)
TRACES = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1))
COLLECTED = st.builds(
    Collected,
    *(UNSIGNED, UNSIGNED, SECONDS, SECONDS, SECONDS, st.integers(-10, 20), st.integers(-(2**31), 2**31 - 1)),
    st.lists(UNSIGNED, max_size=5),
    st.lists(st.tuples(st.integers(-5, 10**12), UNSIGNED, TRACES), max_size=3),
)


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(bool_value=True) if value is True else AnyValue(string_value=value))
        for key, value in attributes.items()
    ]


@given(POINTS, st.booleans(), st.text(max_size=9))
def test_numbers_are_those_of_protobuf(points: list[tuple[Any, float]], is_counter: bool, text: str) -> None:
    encoded = encode_numbers(text, "{request}", text, points, (SINCE, NOW), is_counter=is_counter)
    made = []
    for attributes, value in points:
        number: Any = {"as_int": value} if isinstance(value, int) else {"as_double": value}
        start = SINCE if is_counter else 0
        around: Any = {"start_time_unix_nano": start, "time_unix_nano": NOW}
        made.append(NumberDataPoint(attributes=pairs(attributes), **around, **number))
    cumulative = AGGREGATION_TEMPORALITY_CUMULATIVE
    data: Any = {"gauge": Gauge(data_points=made)}
    if is_counter:
        data = {"sum": Sum(data_points=made, aggregation_temporality=cumulative, is_monotonic=True)}
    if points:
        assert encoded is not None
        assert Metric.FromString(encoded) == Metric(name=text, unit="{request}", description=text, **data)
    else:
        assert encoded is None


@given(st.lists(st.tuples(ATTRIBUTES, COLLECTED), max_size=2))
def test_histograms_are_those_of_protobuf(points: list[tuple[Any, Collected]]) -> None:
    encoded = encode_times("sla.duration", "How long.", points, (SINCE, NOW))
    made = [
        ExponentialHistogramDataPoint(
            attributes=pairs(attributes),
            start_time_unix_nano=SINCE,
            time_unix_nano=NOW,
            count=found.number,
            sum=found.sum,
            min=found.least,
            max=found.most,
            zero_count=found.zeros,
            scale=found.scale,
            positive=ExponentialHistogramDataPoint.Buckets(offset=found.first, bucket_counts=found.buckets),
            exemplars=[
                Exemplar(
                    as_double=max(took_ns, 0) / 1e9,
                    time_unix_nano=at_ns,
                    trace_id=trace[0].to_bytes(16, "big"),
                    span_id=trace[1].to_bytes(8, "big"),
                )
                for took_ns, at_ns, trace in sorted(found.exemplars, key=lambda one: one[1])
            ],
        )
        for attributes, found in points
    ]
    histogram = ExponentialHistogram(data_points=made, aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE)
    if points:
        assert encoded is not None
        metric = Metric(name="sla.duration", unit="s", description="How long.", exponential_histogram=histogram)
        assert Metric.FromString(encoded) == metric
    else:
        assert encoded is None
