"""What the page is shown on: what `make demo` recorded, nothing, one request, and ten thousand breaches.

All of it is as if it ended a minute ago.
"""

from __future__ import annotations

import lzma
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from messages import leaves, put
from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

# A part of what `make demo` sent to its back end: its first act, and of the second the breaches and some good requests.
_DEMO: Final = Path(__file__).parent / "demo.otlp.xz"
MINUTE: Final = 60 * 10**9
MANY: Final = 10_000
# What a page must show as it is: HTML, a script, a template, an address, controls of a terminal, of direction.
HOSTILE: Final = (
    "</script></title></style><x-evil onx-evil=1 style=x onmouseover=alert(1)>\"'><img src=x onerror=alert(1)>"
    "<script>alert(1)</script>&lt;{{7*7}}${7}javascript:alert(1)\u202e\u2066\u200b\x1b[2J\x9b\x07\r\n\t]]>-->"
)
HOSTILE_TRACE: Final = "0bad" * 8
# Where requests with a cause stood; with `cpu_wait`, no stack was sampled.
CODES: Final = {
    "lock_wait": ("app.py:41 in predict", "app.py:57 in warm"),
    "compute": ("ranker/model.py:12 in forward",),
}
_WORDS: Final = ("sla.breach.cause", "ml.stage", "sla.breach.stage", "sla.verdict", "sla.severity")
# The stages of a request that was made here, with their shares.
STAGES: Final = {
    "network.receive": 1,
    "queue": 20,
    "preprocess": 9,
    "inference": 60,
    "postprocess": 8,
    "network.send": 2,
}


def demo() -> Iterable[ExportTraceServiceRequest]:
    """Yield what the demo recorded."""
    message = ExportTraceServiceRequest.FromString(lzma.decompress(_DEMO.read_bytes()))
    later = time.time_ns() - MINUTE - max(span.end_time_unix_nano for *_, span in leaves(message))
    for *_, span in leaves(message):
        span.start_time_unix_nano += later
        span.end_time_unix_nano += later
        for event in span.events:
            event.time_unix_nano += later
    yield message


def nothing() -> Iterable[ExportTraceServiceRequest]:
    """Yield nothing."""
    return ()


def one() -> Iterable[ExportTraceServiceRequest]:
    """Yield a single request, a breach, of a service whose name is hostile."""
    yield request(random.Random(1), time.time_ns() - MINUTE, is_late=True, service='<img src=x onerror="alert(1)">')


def many() -> Iterable[ExportTraceServiceRequest]:
    """Yield ten thousand breaches and as many good requests, within twenty minutes."""
    chance, now = random.Random(2), time.time_ns() - MINUTE
    for batch in range(10):
        message = ExportTraceServiceRequest()
        for number in range(2 * MANY // 10):
            start = now - (batch * 2 * MINUTE + number * 2 * MINUTE // (2 * MANY // 10))
            _add(message, chance, start, is_late=bool(number % 2), service="shop")
        yield message


def hostile() -> Iterable[ExportTraceServiceRequest]:
    """Yield a hundred requests, each text of which would run, break out or deceive where it is not escaped."""
    chance, now = random.Random(3), time.time_ns() - MINUTE
    message = ExportTraceServiceRequest()
    for number in range(100):
        service = HOSTILE + "s" * 500
        _add(message, chance, now - number * MINUTE // 4, is_late=not number % 2, service=service)
    resource, scope = message.resource_spans[0].resource, message.resource_spans[0].scope_spans[0]
    scope.scope.name = scope.scope.version = HOSTILE
    for key in (HOSTILE, "deployment.environment.name", "service.version", "service.instance.id"):
        resource.attributes.add(key=key).value.string_value = HOSTILE
    first = scope.spans[0].trace_id
    for number, span in enumerate(scope.spans):
        if span.trace_id == first:
            span.trace_id = bytes.fromhex(HOSTILE_TRACE)
        for attribute in span.attributes:
            # A number, a stage or a verdict stays what it is, and half of the causes: else there were nothing to draw.
            if attribute.value.HasField("string_value") and (number % 3 or attribute.key not in _WORDS):
                attribute.value.string_value = f"{HOSTILE}{number % 2}"
        for key in (HOSTILE, "db.statement", "url.path", "exception.message", "server.address"):
            span.attributes.add(key=key).value.string_value = HOSTILE
        span.attributes.add(key="long").value.string_value = HOSTILE * 200
        _spoil_events(span)
        span.status.code, span.status.message = span.status.STATUS_CODE_ERROR, HOSTILE
        span.name = HOSTILE if span.kind == span.SPAN_KIND_SERVER else span.name
        child = message.resource_spans[0].scope_spans[0].spans if number < len(STAGES) else None
        if child is not None and span.kind != span.SPAN_KIND_SERVER:
            detail = child.add(trace_id=span.trace_id, span_id=chance.randbytes(8), parent_span_id=span.span_id)
            detail.name, detail.kind = HOSTILE, detail.SPAN_KIND_CLIENT
            detail.start_time_unix_nano, detail.end_time_unix_nano = span.start_time_unix_nano, span.end_time_unix_nano
    yield message


def _spoil_events(span: Span) -> None:
    """Make the values of events hostile, the numbers of every second breach too; add an event whose name is."""
    for event in span.events:
        for attribute in event.attributes:
            if attribute.value.HasField("string_value") or span.span_id[0] % 2:
                attribute.value.string_value = HOSTILE
    put(span.events.add(time_unix_nano=span.start_time_unix_nano, name=HOSTILE), {HOSTILE: HOSTILE})


DATA: Final[dict[str, Callable[[], Iterable[ExportTraceServiceRequest]]]] = {
    "demo": demo,
    "none": nothing,
    "one": one,
    "many": many,
    "hostile": hostile,
}


def fill(folder: Path, name: str) -> None:
    """Store one of the data in a folder, as `stagetrace up` has it."""
    with LocalStore.open(folder) as store:
        for message in DATA[name]():
            appended = store.append(message.SerializeToString())
            assert not appended.rejected, appended
        if name == "hostile":
            store.mark(HOSTILE[:150])


def request(chance: random.Random, start: int, *, is_late: bool, service: str) -> ExportTraceServiceRequest:
    """Return a single request."""
    message = ExportTraceServiceRequest()
    _add(message, chance, start, is_late=is_late, service=service)
    return message


def _add(message: ExportTraceServiceRequest, chance: random.Random, start: int, *, is_late: bool, service: str) -> None:
    """Add one request with its stages; one that is late is a breach, whose cause is one of three."""
    if not message.resource_spans:
        resource = message.resource_spans.add()
        resource.scope_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = service
    spans = message.resource_spans[0].scope_spans[0].spans
    route, region = chance.choice(("/predict", "/embed", "/rank")), chance.choice(("eu", "us"))
    cause = chance.choice(("lock_wait", "compute", "cpu_wait"))
    took_ns = round((chance.uniform(60, 400) if is_late else chance.uniform(5, 45)) * 1e6)
    trace = chance.randbytes(16)
    entry = spans.add(trace_id=trace, span_id=chance.randbytes(8), name=f"POST {route}", kind=2)
    entry.start_time_unix_nano, entry.end_time_unix_nano = start, start + took_ns
    at = start
    for place, (stage, share) in enumerate(STAGES.items(), 1):
        end = start + took_ns if place == len(STAGES) else at + took_ns * share // 100
        span = spans.add(trace_id=trace, span_id=chance.randbytes(8), parent_span_id=entry.span_id, name=stage, kind=1)
        span.start_time_unix_nano, span.end_time_unix_nano = at, end
        _set(span, **{"ml.stage": stage})
        _set(entry, **{f"ml.stage.{stage}.ms": (end - at) / 1e6})
        at = end
    _set(entry, **{"http.route": route, "region": region, "ml.model.name": "ranker", "ml.model.version": "7"})
    _set(entry, **{"sla.breached": is_late, "sla.verdict": "breach" if is_late else "good"})
    _set(entry, **{"sla.objective": "POST /* within 50ms", "sla.threshold_ms": 50.0})
    if is_late:
        _set(entry, **{"sla.overrun_ms": took_ns / 1e6 - 50, "sla.severity": "major", "sla.breach.stage": "inference"})
        _set(
            entry, **{"sla.breach.cause": cause, "sla.breach.evidence": f"inference took {took_ns * 0.6 / 1e6:.1f} ms"}
        )
        lines = CODES.get(cause)
        if lines:
            _stall(entry, lines[took_ns % len(lines)], start + took_ns // 2)


def _stall(entry: Span, line: str, at: int) -> None:
    """Let a breach have stood at a line of code."""
    put(entry, {"sla.breach.code": line})
    place, _, function = line.partition(" in ")
    path, _, number = place.partition(":")
    stack = f'  File "uvicorn/server.py", line 67, in serve\n  File "{path}", line {number}, in {function}'
    event = entry.events.add(name="stall", time_unix_nano=at)
    put(event, {"code.file.path": path, "code.line.number": int(number), "code.function.name": function})
    put(event, {"code.stacktrace": stack, "stagetrace.stall.of": "request"})
    put(event, {"stagetrace.stall.samples": 7, "stagetrace.stall.out_of": 8})


def _set(span: object, **attributes: object) -> None:
    for key, value in attributes.items():
        kind = {bool: "bool_value", str: "string_value", float: "double_value"}[type(value)]
        setattr(span.attributes.add(key=key).value, kind, value)  # type: ignore[attr-defined]
