"""What is sent: spans of no more than a name, a processor that sends them, and how each is accounted for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from grpc import StatusCode
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otlp.clients import client
from otlp.receiver import Receiver, Reply
from stagetrace.otlp.encode import encode_span
from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
from stagetrace.otlp.export.client import ExportClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from stagetrace.otlp.export.spool import Spool
    from stagetrace.otlp.export.transport import Transport

RESOURCE = Resource({"service.name": "sent"})
AWAY = Reply(code=StatusCode.UNAVAILABLE, details="away", takes=False)


def sdk_spans(count: int) -> list[ReadableSpan]:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    spans = [tracer.start_span(str(number)) for number in range(count)]
    for span in spans:
        span.end()
    return spans  # type: ignore[return-value]


ENCODED = encode_span(sdk_spans(1)[0])


def span_named(name: str, padding: int = 0) -> bytes:
    """Return an encoded span with no more than a name, and so many characters beside it."""
    from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

    span = Span(name=name)
    if padding:
        span.attributes.add(key="padding").value.string_value = "x" * padding
    return ScopeSpans(spans=[span]).SerializeToString()


def request(*names: str, padding: int = 0) -> bytes:
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for name in names:
        scope.MergeFromString(span_named(name, padding))
    return message.SerializeToString()


def names_in(data: bytes) -> list[str]:
    return [
        span.name
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def processor(receiver: Receiver, spool: Spool | None, timeout_s: float = 30, **kwargs: Any) -> EncodingSpanProcessor:
    return EncodingSpanProcessor(client("grpc", receiver, timeout_s), spool=spool, **kwargs)


def processor_of(transport: Transport, **kwargs: Any) -> EncodingSpanProcessor:
    """Return a processor that sends by a transport that is not ours."""
    opened = ExportClient(lambda: transport, "there")
    assert opened.load()
    return EncodingSpanProcessor(opened, **kwargs)


def put(made: EncodingSpanProcessor, *names: str, breach: bool = False) -> None:
    for name in names:
        made.put(RESOURCE, None, span_named(name), 1, breach=breach)


def assert_all_accounted_for(made: EncodingSpanProcessor, received: int) -> None:
    """Each span is in exactly one count."""
    counts = made.counts()
    assert counts.pop("received") == received
    later = {"from_spool", "refused_from_spool"}
    assert sum(count for outcome, count in counts.items() if outcome not in later) == received, counts


def wait_for(ready: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))
