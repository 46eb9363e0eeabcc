"""Receive spans and metrics by a real OTLP gRPC receiver, for tests that need no Jaeger and no Collector."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER = 2
CLIENT = 3
SHORT_NS = 8_000_000
# On the request that ends when it is time for it, whichever that is: `tests/answers/test_capacity_served.py` reads it.
NOW_AND_THEN = "stagetrace.process.cpu_ms"


@dataclass(frozen=True)
class Received:
    """One span as received. Times in nanoseconds, ids in hex."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    status: int
    attributes: dict[str, Any]
    scope: str
    service: str


@dataclass(frozen=True)
class Request:
    """One entry span with its stages in order of time, and everything else of the trace."""

    entry: Received
    stages: list[Received]
    others: list[Received]

    @property
    def names(self) -> list[str]:
        """Return the stages in order, without gaps between two sends that a busy machine stretches into stages."""
        names: list[str] = []
        for stage in self.stages:
            sending = "network.send" in names and stage.end - stage.start < SHORT_NS
            if not (sending and stage.name in ("handler", "postprocess", *names[-1:])):
                names.append(stage.name)
        return names

    def total_ns(self, stage: str) -> int:
        return sum(one.end - one.start for one in self.stages if one.name == stage)


@dataclass
class Sink:
    """The spans received so far."""

    endpoint: str = ""
    spans: list[Received] = field(default_factory=list)
    protos: list[Any] = field(default_factory=list)  # the same spans, in order of arrival
    exports: list[bytes] = field(default_factory=list)  # all requests as received
    metrics: list[Any] = field(default_factory=list)  # requests of metrics, in order of arrival
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_for(self, ready: Callable[[list[Received]], bool], timeout_s: float = 60) -> list[Received]:
        """Return all spans as soon as `ready` is true for them."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self.lock:
                spans = list(self.spans)
            if ready(spans):
                return spans
            time.sleep(0.02)
        raise AssertionError(f"not within {timeout_s} s; arrived: {[(s.name, s.trace_id) for s in spans]}")

    def request(self, trace_id: str, entries: int = 1) -> Request:
        """Return the request of this trace, which must have exactly one entry span."""
        spans = self.wait_for(lambda all_: sum(s.kind == SERVER and s.trace_id == trace_id for s in all_) >= entries)
        return request_of([span for span in spans if span.trace_id == trace_id])

    def tiled(self, trace_id: str) -> Request:
        """Return the request of this trace, as `request`, once its span shape is checked."""
        request = self.request(trace_id)
        assert_tiled(request)
        return request

    def traced(self, service: Any, *asked: Any, **kwargs: Any) -> tuple[Request, Any]:
        """Make a request in a trace of its own; return what was recorded of it, tiled, and the response."""
        trace_id, response = service.call(*asked, **kwargs)
        return self.tiled(trace_id), response

    def span(self, trace_id: str, name: str) -> Received:
        """Return the first span of this trace and name, as soon as it is there."""

        def found(all_: list[Received]) -> list[Received]:
            return [span for span in all_ if (span.trace_id, span.name) == (trace_id, name)]

        return found(self.wait_for(lambda all_: bool(found(all_))))[0]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of a service that records and sends its spans here, soon."""
        soon = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        return {"STAGETRACE": "1", **soon, **more}

    def requests(self, trace_id: str, count: int) -> list[Request]:
        """Return the `count` requests of this trace: one for each process, the first caller first."""

        def found(all_: list[Received]) -> list[Request]:
            spans = [span for span in all_ if span.trace_id == trace_id]
            entries = sorted((span for span in spans if span.kind == SERVER), key=lambda span: span.start)
            inside = [[span for span in spans if span.parent_id == entry.span_id] for entry in entries]
            return [request_of([entry, *under]) for entry, under in zip(entries, inside, strict=True)]

        def whole(request: Request) -> bool:
            return sum(one.end - one.start for one in request.stages) == request.entry.end - request.entry.start

        def ready(all_: list[Received]) -> bool:
            return len(found(all_)) == count and all(map(whole, found(all_)))

        requests = found(self.wait_for(ready))
        for request in requests:
            assert_tiled(request)
        return requests

    def points(self, name: str) -> list[Any]:
        """Return the latest points of a metric, those of each process that has sent any."""
        found: dict[bytes, Any] = {}
        for request in list(self.metrics):
            for resource in request.resource_metrics:
                for metric in resource.scope_metrics[0].metrics:
                    if metric.name == name:
                        found[resource.resource.SerializeToString(deterministic=True)] = metric
        return [point for metric in found.values() for point in getattr(metric, metric.WhichOneof("data")).data_points]

    def traces(self) -> set[str]:
        with self.lock:
            return {span.trace_id for span in self.spans}


def request_of(spans: list[Received]) -> Request:
    """Return the one request to which these spans of one trace belong."""
    entries = [span for span in spans if span.kind == SERVER]
    assert len(entries) == 1, [(span.name, span.scope) for span in entries]
    entry = entries[0]
    stages = [span for span in spans if "ml.stage" in span.attributes and span.parent_id == entry.span_id]
    others = [span for span in spans if span is not entry and "ml.stage" not in span.attributes]
    return Request(entry, sorted(stages, key=lambda span: (span.start, span.end)), others)


def assert_tiled(request: Request) -> None:
    """Check the span shape of the design, to the nanosecond."""
    entry, stages = request.entry, request.stages
    assert stages, "no stages"
    assert stages[0].start == entry.start
    assert stages[-1].end == entry.end
    for before, after in pairwise(stages):
        assert before.end == after.start, (before, after)
    assert all(stage.name == stage.attributes["ml.stage"] for stage in stages)
    totals: dict[str, int] = {}
    for stage in stages:
        totals[stage.name] = totals.get(stage.name, 0) + stage.end - stage.start
    carried = {k: v for k, v in entry.attributes.items() if k.startswith("ml.stage.") and k.endswith(".ms")}
    assert carried == {f"ml.stage.{name}.ms": total / 1e6 for name, total in totals.items()}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes_in(pairs: Any) -> dict[str, Any]:
    """Return attributes as a dict, but for that of NOW_AND_THEN."""
    return {pair.key: _value(pair.value) for pair in pairs if pair.key != NOW_AND_THEN}


def receive(sink: Sink, request: Any) -> None:
    """Keep the spans of a request."""
    sink.exports.append(request.SerializeToString())
    for resource_spans in request.resource_spans:
        service = attributes_in(resource_spans.resource.attributes).get("service.name", "")
        for scope_spans in resource_spans.scope_spans:
            received = [
                Received(
                    span.name,
                    span.kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code,
                    attributes_in(span.attributes),
                    scope_spans.scope.name,
                    service,
                )
                for span in scope_spans.spans
            ]
            with sink.lock:
                sink.spans.extend(received)
                sink.protos.extend(scope_spans.spans)


class _Service(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 -- named by the protocol
        receive(self._sink, request)
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 -- named by the protocol
        self._sink.metrics.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextmanager
def run_sink() -> Iterator[Sink]:
    """Serve a sink on a free loopback port."""
    sink = Sink()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Service(sink), server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(sink), server)  # type: ignore[no-untyped-call]
    sink.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield sink
    finally:
        server.stop(None).wait()
