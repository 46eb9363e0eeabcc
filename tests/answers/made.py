"""Requests as a test wants them, through the real decoder and writer into a local store, or into a file."""

from __future__ import annotations

import json
import random
from base64 import b64decode
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from messages import add_scope, put
from stagetrace import semconv
from stagetrace.store import Selection, open_store
from stagetrace.store.local.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from google.protobuf.message import Message

    from stagetrace.store.base import Relations

MS = 1_000_000
NOON = 1_772_366_400_000_000_000  # 2026-03-01T12:00:00Z
_PER_MESSAGE = 500
EVER = ("--since", "1970-01-01")  # for commands


@dataclass(frozen=True)
class Made:
    """One request. `number` makes its ids; without `within_ms` it is not judged, and with it as the policy would."""

    number: int
    start_unix_nano: int = NOON
    stages: Mapping[str, float] = field(default_factory=lambda: {semconv.INFERENCE: 10.0})  # ms, in this order
    service: str = "shop"
    route: str | None = "/predict"
    name: str = "POST /predict"
    model: str | None = None
    version: str | None = None
    within_ms: float | None = None
    objective: str | None = None  # text; else `POST /predict within 50ms`
    verdict: str | None = None  # in place of what `within_ms` says: good, breach, excluded
    stage: str | None = None  # of a breach; else the longest one
    cause: str | None = None
    status: int = 200
    probability: float | None = None  # of the head sampler
    duration_ms: float | None = None  # else the sum of the stages
    with_stage_spans: bool = False
    stage_attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of stage spans, by stage
    attributes: Mapping[str, Any] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)

    @property
    def took_ms(self) -> float:
        """Return the duration."""
        return sum(self.stages.values()) if self.duration_ms is None else self.duration_ms

    @property
    def word(self) -> str | None:
        """Return the verdict."""
        if self.verdict is not None or self.within_ms is None:
            return self.verdict
        return "breach" if self.took_ms > self.within_ms else "good"

    @property
    def all_attributes(self) -> dict[str, Any]:
        """Return what its entry span carries."""
        found: dict[str, Any] = {
            "http.route": self.route,
            "http.request.method": "POST",
            "http.response.status_code": self.status,
            semconv.ML_MODEL_NAME: self.model,
            semconv.ML_MODEL_VERSION: self.version,
            semconv.SLA_SAMPLING_PROBABILITY: self.probability,
            **{semconv.stage_total_ms(stage): float(took) for stage, took in self.stages.items()},
        }
        if self.word is not None:
            found[semconv.SLA_VERDICT] = self.word
        if self.word in ("good", "breach"):
            found[semconv.SLA_BREACHED] = self.word == "breach"
            found[semconv.SLA_OBJECTIVE] = self.objective or f"POST {self.route} within {self.within_ms or 50:g}ms"
            found[semconv.SLA_THRESHOLD_MS] = float(self.within_ms or 50)
        if self.word == "breach":
            found[semconv.SLA_OVERRUN_MS] = self.took_ms - (self.within_ms or 50)
            found[semconv.SLA_SEVERITY] = "minor"
            found[semconv.SLA_BREACH_STAGE] = self.stage or max(self.stages, key=lambda one: self.stages[one])
            found[semconv.SLA_BREACH_CAUSE] = self.cause or "unknown"
        return {key: value for key, value in {**found, **self.attributes}.items() if value is not None}


@contextmanager
def reading(folder: Path) -> Iterator[Relations]:
    """Give all that a store holds as relations."""
    with open_store(str(folder)) as reader, reader.relations(Selection(0, 2**63 - 1)) as relations:
        yield relations


def store(folder: Path, requests: Iterable[Made]) -> Path:
    """Write requests to a local store, new or not, and return its folder."""
    with LocalStore.open(folder) as opened:
        for message in messages(requests):
            opened.append(message.SerializeToString())
    return folder


def kept(requests: Iterable[Made]) -> Iterator[Made]:
    """Yield those that a process keeps that samples one in four, and each breach."""
    chance = random.Random(5)
    for one in requests:
        if one.word == "breach" or chance.random() < 0.25:
            yield one


def lines(path: Path, requests: Iterable[Made]) -> Path:
    """Write requests as OTLP JSON lines, as the Collector's file exporter does, and return the path."""
    with path.open("w") as file:
        file.writelines(json.dumps(as_json(message)) + "\n" for message in messages(requests))
    return path


def as_json(message: Message) -> Any:
    """Return a message as OTLP JSON has it: ids are hex, unlike other bytes."""

    def hexed(found: Any) -> Any:
        if isinstance(found, list):
            return [hexed(one) for one in found]
        if not isinstance(found, dict):
            return found
        ids = ("traceId", "spanId", "parentSpanId")
        return {key: b64decode(one).hex() if key in ids else hexed(one) for key, one in found.items()}

    return hexed(MessageToDict(message))


def messages(requests: Iterable[Made]) -> Iterator[ExportTraceServiceRequest]:
    """Yield requests as OTLP, some hundreds a message."""
    left = iter(requests)
    while some := list(islice(left, _PER_MESSAGE)):
        message = ExportTraceServiceRequest()
        resources: dict[tuple[str, str], Any] = {}
        for one in some:
            key = (one.service, repr(sorted(one.resource.items())))
            if key not in resources:
                resources[key] = add_scope(message, one.service, one.resource)
            _add(resources[key].spans, one)
        yield message


def _add(spans: Any, one: Made) -> None:
    trace_id, entry = one.number.to_bytes(16, "big"), _span_id(one, 1)
    spans.add(
        trace_id=trace_id,
        span_id=entry,
        name=one.name,
        kind=2,
        start_time_unix_nano=one.start_unix_nano,
        end_time_unix_nano=one.start_unix_nano + round(one.took_ms * MS),
    )
    put(spans[-1], one.all_attributes)
    at = one.start_unix_nano
    for place, (stage, took) in enumerate(one.stages.items() if one.with_stage_spans else (), 2):
        spans.add(
            trace_id=trace_id,
            span_id=_span_id(one, place),
            parent_span_id=entry,
            name=stage,
            kind=1,
            start_time_unix_nano=at,
            end_time_unix_nano=at + round(took * MS),
        )
        put(spans[-1], {semconv.ML_STAGE: stage, **one.stage_attributes.get(stage, {})})
        at += round(took * MS)


def _span_id(one: Made, place: int) -> bytes:
    return ((one.number * 16 + place) % 2**64).to_bytes(8, "big")
