"""Spans made by hand, at times to the nanosecond, sent to a real Jaeger by the official exporter."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from messages import leaves
from stagetrace import semconv
from stagetrace.store.base import host_and_port
from stagetrace.store.jaeger.client import JaegerClient

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends import Jaeger

MS = 1_000_000
_ARRIVES_WITHIN_S = 30
_AT_ONCE = 2000  # spans in one export, well below gRPC's 4 MiB
_ids = random.Random(20261124)


def recent() -> int:
    """Return a whole millisecond some ten minutes ago: badger drops what is older than its time to live."""
    return (time.time_ns() // MS - 600_000) * MS


def new_trace_id() -> int:
    return _ids.getrandbits(128) or 1


@dataclass(frozen=True)
class Made:
    """A span to send, and what a reader must say of it."""

    name: str
    service: str
    start: int
    end: int
    kind: SpanKind = SpanKind.SERVER
    attributes: dict[str, Any] = field(default_factory=dict)
    trace: int = field(default_factory=new_trace_id)
    span: int = field(default_factory=lambda: _ids.getrandbits(64) or 1)
    parent: int | None = None
    status: StatusCode = StatusCode.UNSET
    resource: dict[str, Any] = field(default_factory=dict)

    @property
    def trace_id(self) -> str:
        return f"{self.trace:032x}"

    @property
    def span_id(self) -> str:
        return f"{self.span:016x}"

    def child(self, name: str, start: int, end: int, **rest: Any) -> Made:
        """Return a span beneath this one, of the same service unless told otherwise."""
        rest = {"service": self.service, "kind": SpanKind.INTERNAL, "resource": self.resource, **rest}
        return Made(name, start=start, end=end, trace=self.trace, parent=self.span, **rest)

    def stage(self, name: str, start: int, end: int) -> Made:
        """Return a stage span of this entry span."""
        return self.child(name, start, end, attributes={semconv.ML_STAGE: name})


def entry(service: str, start: int, *, breached: bool | None = True, ms: float = 80.0, **rest: Any) -> Made:
    """Return an entry span as the recording side writes it, with a verdict unless `breached` is None."""
    attributes: dict[str, Any] = {"http.route": "/predict", semconv.stage_total_ms(semconv.INFERENCE): ms}
    if breached is not None:
        attributes |= {
            semconv.SLA_BREACHED: breached,
            semconv.SLA_VERDICT: "breach" if breached else "good",
            semconv.SLA_OBJECTIVE: "POST /predict within 50ms",
            semconv.SLA_THRESHOLD_MS: 50.0,
        }
    if breached:
        attributes |= {
            semconv.SLA_OVERRUN_MS: ms - 50.0,
            semconv.SLA_SEVERITY: "major",
            semconv.SLA_BREACH_STAGE: semconv.INFERENCE,
            semconv.SLA_BREACH_CAUSE: "unknown",
            semconv.SLA_BREACH_EVIDENCE: f"inference took {ms} ms of {ms} ms",
        }
    attributes |= rest.pop("attributes", {})
    return Made("POST /predict", service, start, start + round(ms * MS), attributes=attributes, **rest)


def send(jaeger: Jaeger, spans: Iterable[Made]) -> None:
    """Send spans as often as they are given, and return when Jaeger can give each one back."""
    # The last one is new even where the others were sent before: once it is there, so is their repetition.
    # It lies outside the minutes that tests look at.
    made = [*spans, Made("last", "feed", recent() + 300_000 * MS, recent() + 300_000 * MS + 1)]
    export(jaeger.otlp_grpc, made)
    _wait(jaeger, made)


def export(endpoint: str, made: Sequence[Made]) -> None:
    """Send spans to any OTLP receiver over gRPC; all are accepted."""
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True)
    try:
        for at in range(0, len(made), _AT_ONCE):
            assert exporter.export([readable(one) for one in made[at : at + _AT_ONCE]]) is SpanExportResult.SUCCESS
    finally:
        exporter.shutdown()


def readable(made: Made) -> ReadableSpan:
    def context(span: int) -> SpanContext:
        return SpanContext(made.trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    return ReadableSpan(
        made.name,
        context=context(made.span),
        parent=None if made.parent is None else context(made.parent),
        resource=Resource({"service.name": made.service, **made.resource}),
        attributes=made.attributes,
        kind=made.kind,
        start_time=made.start,
        end_time=made.end,
        status=Status(made.status),
    )


def _wait(jaeger: Jaeger, made: Sequence[Made]) -> None:
    """Wait until every span sent can be read by its trace id: a way that shares no search with what is tested."""
    wanted: dict[str, set[str]] = {}
    for one in made:
        wanted.setdefault(one.trace_id, set()).add(one.span_id)
    deadline = time.monotonic() + _ARRIVES_WITHIN_S
    with JaegerClient(*host_and_port(jaeger.url, 16685)) as client:
        for trace_id, spans in wanted.items():
            while not spans <= _stored(client, trace_id):
                assert time.monotonic() < deadline, f"{trace_id} did not arrive within {_ARRIVES_WITHIN_S} s"
                time.sleep(0.05)


def _stored(client: JaegerClient, trace_id: str) -> set[str]:
    parts = map(TracesData.FromString, client.get_trace(trace_id))
    return {span.span_id.hex() for part in parts for _, _, span in leaves(part)}
