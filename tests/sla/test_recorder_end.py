"""What is counted and left of a request as it ends."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBased, TraceIdRatioBased

from sla.recording import START, begun, recorder_of
from stagetrace import Policy
from stagetrace.causes import code
from stagetrace.causes.baseline import Baselines
from stagetrace.request.request import Request
from stagetrace.request.stalls import REQUEST, Stall
from stagetrace.sla import entry_recorder
from stagetrace.sla.decision import Decided, decided
from stagetrace.sla.finish import finish
from stagetrace.sla.verdict_counter import MAX_POINTS, Counted

if TYPE_CHECKING:
    from stagetrace.sla.entry_recorder import EntryRecorder

OBJECTIVE = "* within 1ms"


def end(recorder: EntryRecorder, route: str, *, took: int = 1_000) -> Request:
    request = begun(recorder, route)
    request.enter("queue", at=START + 10)
    request.leave("queue", at=START + 20)
    request.end_entry(START + took)
    return request


def test_what_the_head_sampler_drops_is_counted_and_let_go() -> None:
    recorder, processor, sender = recorder_of(ParentBased(TraceIdRatioBased(0.0)), OBJECTIVE)
    for _ in range(3):
        request = end(recorder, "/a")
        assert (request.ids is not None, request.is_over, request.end) == (False, True, START + 1000)
        assert (request.closed, len(request.so_far())) == (True, 1)
    assert sender.sent == []
    assert processor.counter.counts() == {(OBJECTIVE, "good"): 3}


def test_verdicts_beyond_the_limit_are_counted_in_one_point_that_reports_the_overflow() -> None:
    recorder, processor, sender = recorder_of(DEFAULT_ON, OBJECTIVE)
    for number in range(MAX_POINTS - 1):
        processor.counter.add(OBJECTIVE, "good", f"/{number}")
    for route in ("/a", "/b", "/a", "/unknown", "/unknown"):
        end(recorder, route)
    found = {(key.route, key.overflow): n for key, n in processor.counter.points().items() if not key[2][1:].isdigit()}
    assert found == {("/a", False): 2, ("", True): 3}
    assert processor.counter.counts() == {(OBJECTIVE, "good"): MAX_POINTS + 4}
    assert len(sender.sent) == 5


class Kept(SpanProcessor):
    """Keeps the spans that a provider's processors are given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.mark.parametrize("part", ["encode_request", "entry_rest"])
def test_if_bytes_cannot_be_made_the_request_goes_on_whole_as_spans(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, processor, sender = recorder_of(DEFAULT_ON, OBJECTIVE)
    kept = Kept()
    processor.add_span_processor(kept)
    processor.has_others = False
    monkeypatch.setattr(entry_recorder, part, failing)
    end(recorder, "/a", took=2_000_000)
    assert [span.name for span in kept.spans] == ["handler", "queue", "handler", "GET /a"]
    verdict = kept.spans[-1].attributes or {}
    assert (verdict["sla.verdict"], verdict["sla.breach.stage"]) == ("breach", "handler")
    assert (sender.sent, processor.counter.counts()) == ([], {(OBJECTIVE, "breach"): 1})
    assert sum(processor.counter.causes().values()) == 1


def test_a_verdict_is_counted_and_sent_though_tiling_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, processor, sender = recorder_of(DEFAULT_ON, OBJECTIVE)
    monkeypatch.setattr(Request, "close", failing)
    end(recorder, "/a")
    (span,) = ScopeSpans.FromString(sender.sent[0]).spans
    assert (span.name, span.end_time_unix_nano - span.start_time_unix_nano) == ("GET /a", 1_000)
    assert "sla.verdict" in {pair.key for pair in span.attributes}
    assert processor.counter.counts() == {(OBJECTIVE, "good"): 1}


def test_a_breach_without_a_culprit_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, _, sender = recorder_of(DEFAULT_ON, OBJECTIVE)
    monkeypatch.setattr(Decided, "with_culprit", failing)
    end(recorder, "/a", took=2_000_000)
    entry = ScopeSpans.FromString(sender.sent[0]).spans[-1]
    found = {pair.key: pair.value for pair in entry.attributes}
    assert found["sla.breached"].bool_value
    assert (found["sla.threshold_ms"].double_value, found["sla.overrun_ms"].double_value) == (1.0, 1.0)


@pytest.mark.parametrize("part", ["finish", "_given"])
def test_a_breach_that_cannot_be_sent_is_counted_once_without_a_stage(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, processor, sender = recorder_of(DEFAULT_ON, OBJECTIVE)
    with monkeypatch.context() as broken:
        broken.setattr(entry_recorder, part, failing)
        with suppress(RuntimeError):
            end(recorder, "/a", took=2_000_000)
    end(recorder, "/a", took=2_000_000)
    without, with_stage = Counted(OBJECTIVE, "breach", "/a"), Counted(OBJECTIVE, "breach", "/a", "handler")
    assert processor.counter.points() == {without: 1, with_stage: 1}
    (durations,) = processor.counter.durations().values()
    assert (durations.number, [one[2][:2] for one in durations.exemplars]) == (2, [ids(sender.sent[-1])])


def ids(sent: bytes) -> tuple[int, int]:
    """Return the trace id and the span id of the entry span, which is the last one."""
    entry = ScopeSpans.FromString(sent).spans[-1]
    return int.from_bytes(entry.trace_id, "big"), int.from_bytes(entry.span_id, "big")


@pytest.mark.parametrize("part", ["events_of", "code_of"])
def test_a_breach_whose_line_of_code_cannot_be_told_keeps_verdict_cause_and_evidence(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, _, sender = recorder_of(DEFAULT_ON, OBJECTIVE)
    monkeypatch.setattr(code, part, failing)
    request = begun(recorder, "/a")
    request.stalls = [Stall(START + 1_500_000, REQUEST, ((failing.__code__, 1),))]
    request.end_entry(START + 2_000_000)
    span = ScopeSpans.FromString(sender.sent[0]).spans[-1]
    found = {pair.key: pair.value for pair in span.attributes}
    assert found["sla.breached"].bool_value
    assert found["sla.breach.cause"].string_value
    assert found["sla.breach.evidence"].string_value
    assert "sla.breach.code" not in found


@pytest.mark.parametrize("took", [1_000, 2_000_000])
def test_finishing_a_request_has_no_side_effect(took: int) -> None:
    policy, learned, request = Policy.parse(OBJECTIVE), Baselines(), Request(start=START)
    request.enter("queue", at=START + 10)
    request.leave("queue", at=START + 20)
    request.end, request.method, request.route, request.bound = START + took, "GET", "/a", True
    judged = decided(policy, request)
    finished = [
        finish(request, judged, learned, {}, lambda stages, block, breach, _: (stages.totals(), block, breach))
        for _ in range(2)
    ]
    assert finished[0] == finished[1]
    totals, block, breach = finished[0].spans
    assert sum(totals.values()) == took
    assert (block is None, bool(breach)) == ((False, False) if took == 1_000 else (True, True))
    assert (learned._seen, learned._routes) == ({}, {})


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")
