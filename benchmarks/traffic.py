"""Make realistic ML traffic as serialized OTLP requests: per request one judged entry span and eight stage spans."""

from __future__ import annotations

import random
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

SPANS_PER_TRACE = 9
STAGES = (
    *("queue", "network.receive", "preprocess", "inference"),
    *("preprocess", "inference", "postprocess", "network.send"),
)
ROUTES = ("/predict", "/predict/{model}", "/embed", "/rank", "/health/deep", "/batch/score")
MODELS = ("LogisticRegression", "ranker-v3.onnx", "ranker-v4.onnx", "TfidfVectorizer", "embedder.onnx")
BREACH_SHARE = 0.02


def put(span: Span, **attributes: str | bool | float) -> None:
    """Set attributes; `__` in a name stands for a dot."""
    for name, value in attributes.items():
        attribute = span.attributes.add(key=name.replace("__", "."))
        if isinstance(value, bool):
            attribute.value.bool_value = value
        elif isinstance(value, str):
            attribute.value.string_value = value
        elif isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.double_value = value


class Traffic:
    """Make requests, the same ones for the same seed, one trace about every `gap_ns`."""

    def __init__(
        self, start_ns: int, gap_ns: int = 1_000_000, seed: int = 1, stages: Sequence[str] = STAGES, totals: bool = True
    ) -> None:
        self._random = random.Random(seed)
        self._now = start_ns
        self._gap = gap_ns
        self._stages = stages
        self._totals = totals  # whether entry spans carry their stages' totals, as ours do

    def requests(self, spans: int, per_request: int = 55) -> Iterator[bytes]:
        """Yield requests of `per_request` traces until about `spans` are made."""
        for _ in range(max(1, spans // (per_request * SPANS_PER_TRACE))):
            yield self.request(per_request)

    def request(self, traces: int) -> bytes:
        """Return one serialized request of that many traces of one of four services."""
        message = ExportTraceServiceRequest()
        resource_spans = message.resource_spans.add()
        number = self._random.randrange(4)
        for key, value in (
            ("service.name", f"service-{number}"),
            ("service.version", "1.4.2"),
            ("service.instance.id", f"instance-{number}"),
            ("host.name", f"node-{number}.example"),
            ("telemetry.sdk.name", "opentelemetry"),
            ("telemetry.sdk.language", "python"),
            ("telemetry.sdk.version", "1.45.2"),
        ):
            resource_spans.resource.attributes.add(key=key).value.string_value = value
        scope = resource_spans.scope_spans.add()
        scope.scope.name, scope.scope.version = "stagetrace", "0.1.0"
        for _ in range(traces):
            self._now += int(self._random.expovariate(1 / self._gap))
            self._trace(scope)
        return message.SerializeToString()

    def copies(self, spans: int, per_request: int = 55, different: int = 400) -> Iterator[bytes]:
        """Yield requests until about `spans` are made, quicker: `different` ones again and again at other times."""
        draw = self._random
        made = [ExportTraceServiceRequest.FromString(self.request(per_request)) for _ in range(different)]
        round_ns = different * per_request * self._gap
        for number in range(max(1, spans // (per_request * SPANS_PER_TRACE))):
            message = made[number % different]
            shift = round_ns if number >= different else 0
            trace_id = parent_id = b""
            for span in message.resource_spans[0].scope_spans[0].spans:
                if not trace_id:
                    trace_id, parent_id = draw.randbytes(16), draw.randbytes(8)
                span.trace_id = trace_id
                if span.parent_span_id:
                    span.parent_span_id, span.span_id = parent_id, draw.randbytes(8)
                else:  # the entry span comes last
                    span.span_id, trace_id = parent_id, b""
                span.start_time_unix_nano += shift
                span.end_time_unix_nano += shift
            yield message.SerializeToString()

    def _trace(self, scope: ScopeSpans) -> None:
        draw = self._random
        trace_id, entry_id = draw.randbytes(16), draw.randbytes(8)
        model = draw.choice(MODELS)
        slow = draw.random() < BREACH_SHARE
        at = self._now + draw.randrange(1000)
        totals: dict[str, int] = {}
        for stage in self._stages:
            took = int(draw.lognormvariate(14.5, 0.8)) * (8 if slow and stage == "inference" else 1)
            span = scope.spans.add(trace_id=trace_id, span_id=draw.randbytes(8), parent_span_id=entry_id, name=stage)
            span.kind, span.flags = span.SPAN_KIND_INTERNAL, 0x101
            span.start_time_unix_nano, span.end_time_unix_nano = at, at + took
            put(span, ml__stage=stage)
            if stage == "inference":
                put(span, ml__model__name=model, ml__framework="onnxruntime", ml__batch__size=draw.randrange(1, 64))
            totals[stage] = totals.get(stage, 0) + took
            at += took
        entry = scope.spans.add(trace_id=trace_id, span_id=entry_id)
        entry.start_time_unix_nano, entry.end_time_unix_nano = at - sum(totals.values()), at
        self._describe(entry, model, totals)

    def _describe(self, entry: Span, model: str, totals: dict[str, int]) -> None:
        """Give the entry span its 25 or so attributes, verdict included."""
        draw, route = self._random, self._random.choice(ROUTES)
        took_ms, threshold_ms = sum(totals.values()) / 1e6, 50.0
        entry.kind, entry.flags, entry.name = entry.SPAN_KIND_SERVER, 0x101, f"POST {route}"
        put(entry, http__request__method="POST", http__route=route, http__response__status_code=200)
        put(entry, url__scheme="http", url__path=route, network__protocol__version="1.1")
        put(entry, server__address="api.example", server__port=8000, client__address=f"10.0.0.{draw.randrange(250)}")
        put(entry, client__port=draw.randrange(1024, 65535), user_agent__original="python-httpx/0.28.1")
        put(entry, ml__model__name=model, ml__framework="onnxruntime", ml__batch__size=draw.randrange(1, 64))
        for stage, total in totals.items() if self._totals else ():
            put(entry, **{f"ml__stage__{stage}__ms": total / 1e6})
        breached = took_ms > threshold_ms
        put(entry, sla__breached=breached, sla__verdict="breach" if breached else "good")
        put(entry, sla__objective=f"POST {route} within 50ms for 99.9%", sla__threshold_ms=threshold_ms)
        if breached:
            stage = max(totals, key=lambda one: totals[one])
            put(entry, sla__overrun_ms=took_ms - threshold_ms, sla__severity="major", sla__breach__stage=stage)
            put(entry, sla__breach__cause="compute")
            put(entry, sla__breach__evidence=f"{stage} took {totals[stage] / 1e6:.1f} ms of {took_ms:.1f} ms")


class Reel:
    """Prepared requests that are sent again and again, each time as other traces that end at this moment.

    To a store, an unchanged request is a copy, which costs something else than new spans do.
    """

    def __init__(self, requests: Sequence[bytes]) -> None:
        self._frames = [_frame(request) for request in requests]

    def request(self, number: int) -> bytes:
        """Return the request with this number, as new traces."""
        content, ids, times, last_ns = self._frames[number % len(self._frames)]
        renewed = content.copy()
        renewed[ids] = np.frombuffer(number.to_bytes(_ID_BYTES, "big"), np.uint8)
        moments = renewed[times].view("<i8") + (time.time_ns() - last_ns)
        renewed[times] = moments.view(np.uint8)
        found: bytes = renewed.tobytes()
        return found


_ID_BYTES = 8  # of a trace id the first ones; also of a time


def _frame(request: bytes) -> tuple[Any, Any, Any, int]:
    """Return a request as bytes that can be changed, the places of trace ids and times in it, and its newest end."""
    ids, times, at, last_ns = list[int](), list[int](), 0, 0
    for span in ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans:
        at = request.index(b"\x0a\x10" + span.trace_id + b"\x12\x08" + span.span_id, at) + 2
        ids.append(at)
        both = b"\x39" + struct.pack("<q", span.start_time_unix_nano) + b"\x41"
        at = request.index(both, at)
        times += [at + 1, at + len(both)]
        last_ns = max(last_ns, span.end_time_unix_nano)
    id_places, time_places = (np.array(found)[:, None] + np.arange(_ID_BYTES) for found in (ids, times))
    return np.frombuffer(request, np.uint8), id_places, time_places, last_ns
