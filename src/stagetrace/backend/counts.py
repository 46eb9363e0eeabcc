"""The data points of `sla.requests` in an OTLP metrics export. All others are counted and discarded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    DataPointFlags,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
)

from stagetrace import semconv
from stagetrace.backend.refusal import MALFORMED, Refused, too_many
from stagetrace.otlp.decode.json import most_values, quote
from stagetrace.store.entries import HTTP_ROUTE, RPC_METHOD
from stagetrace.store.local.counts import Point
from stagetrace.store.rows import values

# An export is mostly that of one process, some hundred kilobytes. Of two bytes protobuf makes an object of a hundred.
LARGEST: Final = 4 << 20
MOST_PARTS: Final = 100_000  # resources, scopes, metrics, and data points of `sla.requests`
MOST_JSON_VALUES: Final = 200_000
_GREATEST: Final = 2**63
_READ: Final = {semconv.SLA_OBJECTIVE, semconv.SLA_VERDICT, HTTP_ROUTE, RPC_METHOD}
_LONGEST: Final = 1_000  # of the other attributes
_RESOURCE_METRICS: Final = {"resourceMetrics", "resource_metrics"}
_WHY: Final = "stagetrace keeps the counter sla.requests and no other metric"


class Export(NamedTuple):
    """The stored part of an export."""

    points: list[Point]
    discarded: int  # data points of other metrics, and unusable ones of this metric

    def response(self) -> ExportMetricsServiceResponse:
        """Return the response: empty where everything was kept."""
        response = ExportMetricsServiceResponse()
        if self.discarded:
            response.partial_success.rejected_data_points = self.discarded
            response.partial_success.error_message = _WHY
        return response


def parse(content: bytes, check: Callable[[], None], *, is_json: bool = False) -> Export:
    """Return the part of a request that is stored. Raise Refused if it is no ExportMetricsServiceRequest.

    `check` is called between steps, and ends the work by an error.
    """
    try:
        request = _of_json(content, check) if is_json else ExportMetricsServiceRequest.FromString(content)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError) as error:
        raise Refused(MALFORMED, f"the request is no ExportMetricsServiceRequest: {quote(error)}") from None
    points: list[Point] = []
    discarded = 0
    for resource, metric in _metrics(request, check):
        found = list(_points(resource, metric)) if metric.name == semconv.METRIC_REQUESTS else []
        points += found
        discarded += _size(metric) - len(found)
    return Export(points, discarded)


def _of_json(content: bytes, check: Callable[[], None]) -> ExportMetricsServiceRequest:
    """Return the request in a JSON document. Raise ValueError or ParseError where it is none."""
    if most_values(content) > MOST_JSON_VALUES:
        raise too_many(f"the JSON may have more than {MOST_JSON_VALUES} values")
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 -- wrong in a document, whatever its type
    request = ExportMetricsServiceRequest()
    for name in _RESOURCE_METRICS & document.keys():
        given = document[name]
        for one in given if isinstance(given, list) else [given] if given is not None else []:
            check()
            part = ExportMetricsServiceRequest()
            json_format.ParseDict({name: [one]}, part, ignore_unknown_fields=True)
            request.MergeFrom(part)
    return request


def _metrics(
    request: ExportMetricsServiceRequest, check: Callable[[], None]
) -> Iterator[tuple[ResourceMetrics, Metric]]:
    """Yield each metric with its resource. Raise Refused for more than MOST_PARTS parts, before they are looked at."""
    left = MOST_PARTS
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            check()
            left -= 1 + len(scope.metrics)
            for metric in scope.metrics:
                left -= _size(metric) if metric.name == semconv.METRIC_REQUESTS else 0
                if left < 0:
                    raise too_many(f"the request has more than {MOST_PARTS} parts")
                yield resource, metric
        left -= 1
        if left < 0:
            raise too_many(f"the request has more than {MOST_PARTS} parts")


def _size(metric: Metric) -> int:
    kind = metric.WhichOneof("data")
    return 0 if kind is None else len(getattr(metric, kind).data_points)


def _points(resource: ResourceMetrics, metric: Metric) -> Iterator[Point]:
    temporality = metric.sum.aggregation_temporality
    known = (
        AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA,
        AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE,
    )
    if metric.WhichOneof("data") != "sum" or not metric.sum.is_monotonic or temporality not in known:
        return
    about = values(resource.resource.attributes)
    service = about.get("service.name")
    instance = hashlib.sha256(resource.resource.SerializeToString(deterministic=True)).hexdigest()[:16]
    for point in metric.sum.data_points:
        attributes = values(point.attributes)
        objective, verdict = attributes.get(semconv.SLA_OBJECTIVE), attributes.get(semconv.SLA_VERDICT)
        route = attributes.get(HTTP_ROUTE, attributes.get(RPC_METHOD, ""))
        rest = {name: attributes[name] for name in sorted(attributes.keys() - _READ)}
        value = _whole(point)
        times = (point.start_time_unix_nano, point.time_unix_nano)
        if (
            value is None
            or not (isinstance(objective, str) and isinstance(verdict, str) and isinstance(route, str))
            or not 0 < times[0] <= times[1] < _GREATEST
        ):
            continue
        name = service if isinstance(service, str) else ""
        of = (name, instance, times[0], route, objective, verdict)
        yield Point(*of, value, times[1], temporality == known[0], _short(rest))


def _short(rest: dict[str, Any]) -> str:
    """Return attributes as one text, the same for the same ones."""
    text = json.dumps(rest, default=str) if rest else ""
    return text if len(text) <= _LONGEST else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _whole(point: NumberDataPoint) -> int | None:
    if point.flags & DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK:
        return None
    value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
    return int(value) if 0 <= value < _GREATEST and value == int(value) else None
