"""Library calls inside stages become detail spans under them, one a kind, and change no stage."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind

from otlp.schedules import BOTH, Implementation, Schedule, child, encoded, messages
from sla.recording import START, Sender, begun, recorder_of
from stagetrace import guard, stage
from stagetrace.api.carrier import _RemoteBlock
from stagetrace.bridge.spans import _detail_span as detail_span
from stagetrace.instrumentation import detail as detail_module
from stagetrace.instrumentation.detail import detailed, record_detail
from stagetrace.otlp.encode import encode_details, encode_spans
from stagetrace.request.current import current
from stagetrace.request.details import MAX_KINDS, MAX_NOTED, MAX_SPANS, Detail, Details, take_details
from stagetrace.request.remote_stages import RequestRef, hand_on
from stagetrace.request.request import Request
from stagetrace.request.worker import Batch, Work
from stagetrace.semconv import INFERENCE, SLA_UPGRADED

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

pytestmark = pytest.mark.native

MS = 1_000_000
PATCH = "tests.recording.test_details"
Tree = dict[str, list[tuple[Any, ...]]]


def call(record: Request, name: str, begin: float, end: float, library: str = "") -> None:
    """Note a call from and to, in ms since the request began."""
    details = record.details = record.details or Details()
    first, last = START + int(begin * MS), START + int(end * MS)
    details.add(record, (name, library), (first, last, 1, last - first, 0))


def calls(*times: float) -> Callable[[Request], None]:
    """Return a step that notes calls of half a millisecond."""

    def note(record: Request) -> None:
        for at in times:
            call(record, "tokenize", at, at + 0.5)

    return note


def inferred(record: Request, begin: float, end: float) -> None:
    record.enter(INFERENCE, None, START + int(begin * MS))
    record.leave(INFERENCE, START + int(end * MS))


def spans_of(sender: Sender) -> list[Span]:
    return [span for sent in sender.sent for span in ScopeSpans.FromString(sent).spans]


def tree(spans: list[Span]) -> Tree:
    """Return the details by stage: name, begin and end (ms since the request began), calls."""
    names = {span.span_id: span.name for span in spans if any(one.key == "ml.stage" for one in span.attributes)}
    found: Tree = {name: [] for name in names.values()}
    for span in spans:
        values = {one.key: one.value for one in span.attributes}
        if span.parent_span_id and span.span_id not in names:
            times = (span.start_time_unix_nano - START) / MS, (span.end_time_unix_nano - START) / MS
            found[names[span.parent_span_id]].append(
                (span.name, *times, values["stagetrace.detail.calls"].int_value if "other" not in values else "other")
            )
    return found


def recorded(*steps: Callable[[Request], None], end: float = 10, objective: str = "* within 1s") -> list[Span]:
    recorder, _, sender = recorder_of(ALWAYS_ON, objective)
    entry = begun(recorder, "/a")
    for step in steps:
        step(entry)
    entry.end_entry(START + int(end * MS))
    return spans_of(sender)


def test_calls_of_a_kind_are_one_span_within_each_visit_to_a_stage() -> None:
    spans = recorded(
        calls(0.5, 1, 2),
        lambda record: inferred(record, 3, 6),
        lambda record: call(record, "tokenize", 4, 4.5),
        lambda record: call(record, "tokenize", 7, 7.25),
        lambda record: call(record, "image.decode", 2.5, 2.75, "PIL"),
    )
    assert tree(spans) == {
        "preprocess": [("tokenize", 0.5, 2.5, 3), ("image.decode", 2.5, 2.75, 1)],
        "inference": [("tokenize", 4, 4.5, 1)],
        "postprocess": [("tokenize", 7, 7.25, 1)],
    }
    assert [span.kind for span in spans] == [1] * 7 + [2]  # INTERNAL, and SERVER last
    (first,) = [span for span in spans if span.name == "tokenize" and span.start_time_unix_nano == START + MS // 2]
    assert [(one.key, one.value.int_value or one.value.double_value) for one in first.attributes] == [
        ("stagetrace.detail.calls", 3),
        ("stagetrace.detail.time_ms", 1.5),
    ]


def test_stages_are_the_same_with_and_without_details() -> None:
    def steps(record: Request) -> None:
        inferred(record, 3, 6)
        inferred(record, 6.5, 7)

    def stages(spans: list[Span]) -> list[Any]:
        return [
            (one.name, one.start_time_unix_nano, one.end_time_unix_nano)
            for one in spans
            if any(attribute.key.startswith("ml.stage") for attribute in one.attributes)
        ]

    wanted = recorded(steps)
    got = recorded(steps, calls(*(at / 10 for at in range(90))))
    assert stages(got) == stages(wanted)
    assert len(got) == len(wanted) + 5


def test_a_call_with_attributes_is_a_span_of_its_own() -> None:
    def steps(record: Request) -> None:
        for at in (1, 2):
            record_detail(record, "prefill", START + at * MS, START + (at + 1) * MS, {"other": at})
        record_detail(record, "decode", START + 3 * MS, START + 4 * MS)

    assert tree(recorded(steps)) == {
        "handler": [("prefill", 1, 2, "other"), ("prefill", 2, 3, "other"), ("decode", 3, 4, 1)]
    }


def test_a_request_keeps_its_longest_details_and_counts_the_others() -> None:
    def steps(record: Request) -> None:
        for at in range(100):
            inferred(record, at * 10, at * 10 + 5)
            call(record, "tokenize", at * 10 + 6, at * 10 + 6 + at / 100)

    spans = recorded(steps, end=1000)
    kept = sorted(span.start_time_unix_nano for span in spans if span.name == "tokenize")
    assert kept == [START + (at * 10 + 6) * MS for at in range(100 - MAX_SPANS, 100)]
    (left_out,) = [one.value.int_value for one in spans[-1].attributes if one.key == "stagetrace.dropped_details"]
    assert left_out == 100 - MAX_SPANS


def test_memory_is_bounded_and_nothing_is_lost_of_calls_in_few_stages() -> None:
    def steps(record: Request) -> None:
        inferred(record, 500, 600)
        for at in range(1_000):
            call(record, "tokenize", at, at + 0.5)
            assert record.details is not None
            assert len(record.details._kinds["tokenize", ""]) <= MAX_NOTED
        for number in range(MAX_KINDS + 5):
            call(record, f"kind {number}", 0, 1)

    spans = recorded(steps, end=1000)
    kept = [(stage, one[3]) for stage, ones in tree(spans).items() for one in ones if one[0] == "tokenize"]
    assert kept == [("preprocess", 500), ("inference", 100), ("postprocess", 400)]
    assert len({span.name for span in spans if span.name.startswith("kind")}) == MAX_KINDS - 1


def test_a_dropped_request_sends_no_details_and_a_breach_all_of_them_marked() -> None:
    def request(objective: str) -> list[Span]:
        recorder, _, sender = recorder_of(ALWAYS_OFF, objective)
        entry = begun(recorder, "/a")
        call(entry, "tokenize", 1, 2)
        entry.end_entry(START + 10 * MS)
        return spans_of(sender)

    assert request("* within 1s") == []
    spans = request("* within 1ms")
    assert tree(spans) == {"handler": [("tokenize", 1, 2, 1)]}
    assert all(any(one.key == SLA_UPGRADED for one in span.attributes) for span in spans)


def test_processors_of_others_see_details_as_spans() -> None:
    recorder, processor, _ = recorder_of(ALWAYS_ON, "* within 1s")
    seen: list[Any] = []
    processor.has_others = True
    processor.hand_on = seen.append  # type: ignore[method-assign,assignment]
    entry = begun(recorder, "/a")
    call(entry, "tokenize", 1, 2, "tokenizers")
    entry.end_entry(START + 10 * MS)
    detail, handler, server = seen
    assert (detail.name, detail.kind, detail.parent, handler.parent) == (
        *("tokenize", SpanKind.INTERNAL),
        *(handler.context, server.context),
    )
    assert dict(detail.attributes) == {
        "stagetrace.detail.calls": 1,
        "stagetrace.detail.time_ms": 1.0,
        "stagetrace.detail.library": "tokenizers",
    }


def test_details_are_encoded_as_the_official_encoder_does() -> None:
    details = [
        Detail("tokenize", child(7), START, START + 5, {"stagetrace.detail.calls": 3, "text": "ü" * 300, "x": 0.5}),
        Detail("", child(9), START, START, {}),
    ]
    official = ExportTraceServiceRequest.FromString(
        encode_spans([detail_span(one, Resource({}), {}) for one in details])
    )
    wanted = official.resource_spans[0].scope_spans[0].spans
    got = ScopeSpans.FromString(encode_details(details, b"")).spans
    for one in (*wanted, *got):
        assert one.span_id
        one.span_id = b""
    assert list(got) == list(wanted)


@pytest.mark.parametrize("how", BOTH)
def test_a_visit_that_has_ended_can_be_given_a_context(how: Implementation) -> None:
    """Its span has that id then, and it is not summed with others."""
    schedule = Schedule()
    for _ in range(300):
        schedule.add(10, f"+{INFERENCE}").add(10, f"-{INFERENCE}")
    stages = schedule.stages(how, 0)
    stages.give_context(100, child(77))
    assert [one.context for one in stages.segments()].index(child(77)) == 100
    spans = ScopeSpans.FromString(encoded(how, stages)[0]).spans
    assert [span.span_id for span in spans].count((77).to_bytes(8, "big")) == 1
    assert len(messages(encoded(how, stages))) < 300
    with pytest.raises(IndexError):
        stages.give_context(10_000, child(78))


def test_what_another_process_reports_is_as_if_it_were_here() -> None:
    def steps(record: Request) -> None:
        inferred(record, 3, 6)
        elsewhere = Request(start=START)
        call(elsewhere, "tokenize", 1, 2, "tokenizers")
        call(elsewhere, "tokenize", 4, 5, "tokenizers")
        inferred(elsewhere, 3, 6)
        record_detail(elsewhere, "prefill", START + 7 * MS, START + 8 * MS, {"other": 1})
        assert elsewhere.details is not None
        report = elsewhere.details.report(elsewhere.close(START, START + 9 * MS))
        take_details(record, json.loads(json.dumps(report)))

    assert tree(recorded(steps)) == {
        "preprocess": [("tokenize", 1, 2, 1)],
        "inference": [("tokenize", 4, 5, 1)],
        "postprocess": [("prefill", 7, 8, "other")],
    }


def test_work_that_was_taken_from_a_queue_reports_its_details() -> None:
    def steps(record: Request) -> None:
        key = hand_on(record, at=START + MS, conclude=lambda: None)
        assert record.entry is not None
        work = Work(RequestRef(key, record.entry), start=START + 2 * MS)
        call(work, "tokenize", 2.5, 3)
        call(work, "tokenize", 4, 4.5)
        inferred(work, 4, 5)
        work.finish()

    assert tree(recorded(steps)) == {
        "preprocess": [("tokenize", 2.5, 3, 1)],
        "queue": [],
        "inference": [("tokenize", 4, 4.5, 1)],
        "postprocess": [],
    }


# The wrapper.


def tokenize(text: str, *, limit: int = 3) -> list[str]:
    """Split."""
    if not text:
        raise LookupError("empty")
    return text.split()[:limit]


plain = tokenize
tokenize = detailed(tokenize, "tokenize", "ours", PATCH)


@pytest.fixture
def record() -> Iterator[Request]:
    made = Request()
    made.bound = True
    token = current.set(made)
    yield made
    current.reset(token)


def noted(record: Request) -> dict[Any, tuple[int, int]]:
    """Return how many calls are noted of each kind, and how many of them raised."""
    kinds = {} if record.details is None else record.details._kinds
    return {kind: (sum(one[2] for one in calls), sum(one[4] for one in calls)) for kind, calls in kinds.items()}


def test_a_wrapped_function_is_as_before(record: Request) -> None:
    assert tokenize("a b c", limit=2) == ["a", "b"]
    with pytest.raises(LookupError, match="empty"):
        tokenize("")
    assert noted(record) == {("tokenize", "ours"): (2, 1)}
    assert inspect.signature(tokenize) == inspect.signature(plain)
    assert (tokenize.__name__, tokenize.__doc__) == ("tokenize", "Split.")
    assert pickle.loads(pickle.dumps(tokenize)) is tokenize  # noqa: S301 -- our own


def test_outside_a_request_nothing_is_noted() -> None:
    assert contextvars.Context().run(tokenize, "a") == ["a"]


def test_of_calls_within_each_other_the_outermost_of_a_name_counts(record: Request) -> None:
    decode = detailed(lambda: None, "decode", "inner", PATCH)
    outer = detailed(lambda: (tokenize("a"), decode()), "tokenize", "outer", PATCH)
    outer()
    tokenize("a")
    assert noted(record) == {("tokenize", "outer"): (1, 0), ("decode", "inner"): (1, 0), ("tokenize", "ours"): (1, 0)}


def test_coroutine_functions_stay_so_and_may_overlap(record: Request) -> None:
    async def fetch(fails: bool) -> int:
        await asyncio.sleep(0)
        if fails:
            raise LookupError
        return 7

    wrapped = detailed(fetch, "fetch", "ours", PATCH)
    assert inspect.iscoroutinefunction(wrapped)

    async def several() -> list[Any]:
        return await asyncio.gather(*(wrapped(fails) for fails in (False, True, False)), return_exceptions=True)

    first, failed, last = asyncio.run(several())
    assert (first, type(failed), last) == (7, LookupError, 7)
    assert noted(record) == {("fetch", "ours"): (3, 1)}


def test_a_coroutine_that_is_closed_in_another_context_is_noted(record: Request) -> None:
    class Waits:
        def __await__(self) -> Generator[None]:
            yield

    async def fetch() -> None:
        await Waits()

    coroutine = detailed(fetch, "fetch", "ours", PATCH)()
    coroutine.send(None)
    contextvars.copy_context().run(coroutine.close)
    assert noted(record) == {("fetch", "ours"): (1, 1)}


def test_many_threads_lose_no_call(record: Request) -> None:
    def work() -> None:
        for _ in range(1_000):
            tokenize("a")

    context = contextvars.copy_context
    threads = [threading.Thread(target=context().run, args=(work,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert noted(record) == {("tokenize", "ours"): (4_000, 0)}


def test_a_call_that_outlasts_the_request_is_left_out(record: Request) -> None:
    outlasting = detailed(record.abandon, "fetch", "ours", PATCH)
    outlasting()
    assert record.details is None


def test_a_fault_of_ours_is_logged_and_changes_no_result(record: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("injected fault")

    before = guard.failures.get(PATCH, 0)
    monkeypatch.setattr(detail_module, "working_for", lambda: record)
    monkeypatch.setattr(Details, "add", fails)
    monkeypatch.setattr(Details, "add_single", fails)
    assert tokenize("a b") == ["a", "b"]
    record_detail(record, "prefill", 1, 2, {})
    assert guard.failures[PATCH] == before + 1


def test_a_request_whose_details_cannot_be_placed_is_sent_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("injected fault")

    monkeypatch.setattr(Details, "grouped", fails)
    assert [span.name for span in recorded(calls(1, 2))] == ["handler", "GET /a"]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Return what the process's tracer provider exports to."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def test_details_of_a_batch_are_under_its_one_inference(exported: InMemorySpanExporter) -> None:
    batch = Batch([RequestRef("", child(7))], 1, start=START)
    call(batch, "tokenize", 0, 1)
    call(batch, "tokenize", 2, 3)
    inferred(batch, 2, 5)
    batch.finish()
    detail, inference = exported.get_finished_spans()
    assert (detail.name, detail.parent, detail.start_time) == ("tokenize", inference.context, START + 2 * MS)
    assert dict(detail.attributes or {})["stagetrace.detail.calls"] == 1


def test_details_in_a_process_that_goes_on_are_under_its_stages(exported: InMemorySpanExporter) -> None:
    block = _RemoteBlock("", Context())
    with stage(INFERENCE):
        tokenize("a b")
    tokenize("a b")
    block.end(None)
    spans = {span.context.span_id: span for span in exported.get_finished_spans() if span.context is not None}
    parents = [spans[one.parent.span_id].name for one in spans.values() if one.name == "tokenize" and one.parent]
    assert parents == ["inference", "postprocess"]
