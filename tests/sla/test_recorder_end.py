"""What is counted and left of a request as it ends."""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBased, Sampler, TraceIdRatioBased

from stagetrace import KeepBreaches, SLASpanProcessor
from stagetrace.otlp.encode.span_encoder import Block
from stagetrace.recording.own_span import OwnSpan
from stagetrace.recording.record import RequestRecord
from stagetrace.sla.entry_recorder import EntryRecorder
from stagetrace.sla.verdict_counter import MAX_COUNTED

START = 10**18
OBJECTIVE = "* within 1ms"


class Adapter:
    """Describes a request as the adapters of protocols do."""

    def known_attributes(self) -> dict[str, Any]:
        return {}

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        return [Block({"http.request.method": "GET"})], Block({"client.address": "::1"}), {"url.path": "/a"}


class Sender:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def put(self, _resource: Any, _scope: Any, encoded: bytes, _spans: int, **_: Any) -> None:
        self.sent.append(encoded)


def recorder_of(sampler: Sampler) -> tuple[EntryRecorder, SLASpanProcessor, Sender]:
    provider = TracerProvider(KeepBreaches(sampler), Resource({}), shutdown_on_exit=False)
    processor = SLASpanProcessor(OBJECTIVE, provider._active_span_processor)
    processor.has_others = False
    sender = Sender()
    return EntryRecorder(provider, processor, [sender]), processor, sender  # type: ignore[list-item]


def end(recorder: EntryRecorder, route: str) -> OwnSpan:
    entry = OwnSpan(RequestRecord(start=START), Adapter(), f"GET {route}", recorder, Context())
    entry.record.enter("queue", at=START + 10)
    entry.record.leave("queue", at=START + 20)
    recorder.end(entry, START + 1000, "GET", route)
    return entry


def test_what_the_head_sampler_drops_is_counted_and_let_go() -> None:
    recorder, processor, sender = recorder_of(ParentBased(TraceIdRatioBased(0.0)))
    for _ in range(3):
        entry = end(recorder, "/a")
        record = entry.record
        assert (entry.has_identity, entry.end_time, record.closed, record._log) == (False, START + 1000, True, [])
    assert sender.sent == []
    assert processor.counter.counts() == {(OBJECTIVE, "good"): 3}


def test_verdicts_are_counted_without_the_route_where_there_are_too_many() -> None:
    recorder, processor, sender = recorder_of(DEFAULT_ON)
    for number in range(MAX_COUNTED - 1):
        processor.counter.add(OBJECTIVE, "good", f"/{number}")
    for route in ("/a", "/b", "/a", "/unknown", "/unknown"):
        end(recorder, route)
    found = {key[2]: count for key, count in processor.counter.by_route().items() if not key[2][1:].isdigit()}
    assert found == {"/a": 2, "": 3}
    assert processor.counter.counts() == {(OBJECTIVE, "good"): MAX_COUNTED + 4}
    assert len(sender.sent) == 5
