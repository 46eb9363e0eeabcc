"""Traces of all shapes, for the view of one: two services, many spans, circles, and many of one kind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from answers.made import Made, messages
from messages import add_scope, put
from page.data import MINUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

MS: Final = 10**6
TWO, WIDE, BROKEN = "a1" * 16, "b2" * 16, "c3" * 16
BATCH: Final = "e6" * 16  # linked to, and not stored
MANY: Final = 10_000  # spans of the wide one
KIND: Final = 40  # requests of a kind
LONG: Final = "long value \u202e <b>" * 1_000


def all_of_them() -> Iterator[ExportTraceServiceRequest]:
    """Yield all traces, as if they ended a minute ago."""
    start = time.time_ns() - MINUTE
    for make in (_two, _wide, _broken):
        message = ExportTraceServiceRequest()
        make(message, start)
        yield message
    many = (
        Made(
            number,
            start + number * MS,
            {"queue": float(number), "inference": 100.0},
            service="kind",
            within_ms=1000,
            with_stage_spans=True,
        )
        for number in range(1, KIND + 1)
    )
    few = (Made(1000 + number, start, service="kind", route="/few", name="POST /few") for number in range(19))
    yield from messages([*many, *few])


class _Spans:
    """Adds spans of one service and trace: times are ms after the start."""

    def __init__(self, message: ExportTraceServiceRequest, service: str, trace: str, start: int) -> None:
        self._scope = add_scope(message, service)
        self._trace = bytes.fromhex(trace)
        self._start = start

    def add(
        self, number: int, parent: int, name: str, begin: float, end: float, kind: int = 1, **attributes: Any
    ) -> Any:
        made = self._scope.spans.add(
            trace_id=self._trace,
            span_id=number.to_bytes(8, "big"),
            parent_span_id=parent.to_bytes(8, "big") if parent else b"",
            name=name,
            kind=kind,
            start_time_unix_nano=self._start + round(begin * MS),
            end_time_unix_nano=self._start + round(end * MS),
        )
        put(made, {key.replace("__", "."): value for key, value in attributes.items()})
        return made

    def stage(self, number: int, parent: int, name: str, begin: float, end: float, **attributes: Any) -> Any:
        return self.add(number, parent, name, begin, end, ml__stage=name, **attributes)


def _two(message: ExportTraceServiceRequest, start: int) -> None:
    """A breach of `front`, which waited for `ranker`, whose clock is late."""
    front = _Spans(message, "front", TWO, start)
    entry = front.add(
        1, 0, "POST /search", 0, 100, 2,
        **{
            "http.route": "/search", "sla.breached": True, "sla.verdict": "breach", "sla.threshold_ms": 50.0,
            "sla.overrun_ms": 50.0, "sla.severity": "critical", "sla.breach.stage": "inference",
            "sla.breach.cause": "downstream", "sla.breach.peer": "ranker",
            "sla.breach.evidence": "it waited for ranker",
            "sla.breach.part.downstream_ms": 60.0, "sla.breach.part.compute_ms": 40.0,
            "ml.stage.preprocess.ms": 20.0, "ml.stage.inference.ms": 80.0, "long": LONG,
            "sla.breach.code": "app.py:41 in search", "stagetrace.dropped_stalls": 3,
        },
    )  # fmt: skip
    _stalls(entry, start)
    front.stage(2, 1, "preprocess", 0, 20)
    cpu = {"stagetrace.cpu.time_ms": 10.0, "stagetrace.cpu.wait_ms": 6.0, "stagetrace.cpu.blocked_ms": 64.0}
    front.stage(3, 1, "inference", 20, 100, **cpu)
    call = front.add(4, 3, "POST", 30, 90, 3, peer__service="ranker")
    call.status.code = 2
    event = call.events.add(name="exception", time_unix_nano=start + 50 * MS)
    put(event, {"exception.type": "TimeoutError", "exception.stacktrace": "Traceback:\n  line"})
    late = _Spans(message, "ranker", TWO, start + 1000 * MS)
    entry = late.add(5, 4, "POST /rank", 35, 85, 2, **{"sla.breached": False, "sla.verdict": "good"})
    link = entry.links.add(trace_id=bytes.fromhex(BATCH), span_id=b"12345678")
    put(link, {"batch": "7"})
    late.stage(6, 5, "inference", 35, 85)


def _stalls(entry: Any, start: int) -> None:
    """Let the breach have stood in two places of its own, the lesser one first, and name a rival."""
    for at, of, samples, out_of, gil_ms, places in (
        (12, "request", 1, 8, 242.0, (("app.py", 30, "read"),)),
        (60, "request", 7, 8, None, (("app.py", 41, "search"), ("httpx/_client.py", 914, "send"))),
        (60, "rival", 2, 2, None, (("worker.py", 9, "<lambda>"),)),
    ):
        event = entry.events.add(name="stall", time_unix_nano=start + at * MS)
        file, line, function = places[0]
        put(event, {"code.file.path": file, "code.line.number": line, "code.function.name": function})
        stack = "\n".join(f'  File "{file}", line {line}, in {function}' for file, line, function in places)
        put(event, {"code.stacktrace": stack, "stagetrace.stall.of": of})
        put(event, {"stagetrace.stall.samples": samples, "stagetrace.stall.out_of": out_of})
        put(event, {} if gil_ms is None else {"stagetrace.stall.gil_ms": gil_ms})


def _wide(message: ExportTraceServiceRequest, start: int) -> None:
    """One request with very many details."""
    made = _Spans(message, "wide", WIDE, start)
    made.add(1, 0, "GET /wide", 0, 1000, 2)
    made.stage(2, 1, "preprocess", 0, 100)
    made.stage(3, 1, "inference", 100, 1000)
    for number in range(4, MANY + 1):
        made.add(number, 3, f"call {number}", 100 + number * 0.08, 100 + number * 0.08 + 0.05)


def _broken(message: ExportTraceServiceRequest, start: int) -> None:
    """Two spans that are each other's parents, and one whose parent is missing."""
    made = _Spans(message, "broken", BROKEN, start)
    made.add(1, 2, "chicken", 0, 10)
    made.add(2, 1, "egg", 2, 8)
    made.add(3, 99, "orphan", 5, 20)
