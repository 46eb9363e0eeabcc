"""What a service starts by OpenTelemetry's API, where it has no SDK: spans are sent as ours, requests judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from opentelemetry.trace import NonRecordingSpan, SpanKind, Status, StatusCode, TraceFlags

from stagetrace import guard
from stagetrace.bridge.tracer import OwnTracerProvider
from stagetrace.otlp.encode import encode_span
from stagetrace.request.context import here, meet_otel
from stagetrace.request.current import current
from stagetrace.sla.entry_recorder import EntryRecorder
from stagetrace.sla.processor import Judge
from stagetrace.sla.provider import OwnProvider
from stagetrace.tracing.sampler import Sampler
from stagetrace.tracing.span import Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[..., trace.Tracer]

START = 10**18
MS = 1_000_000
PARENT = trace.SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))
UNSAMPLED = trace.SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(0))


class Kept:
    """A sender that keeps the spans that it is given."""

    def __init__(self) -> None:
        self.encoded: list[bytes] = []

    def put(self, _resource: Any, _scope: Any, encoded: bytes, _spans: int, *, breach: bool) -> None:  # noqa: ARG002
        self.encoded.append(encoded)

    def on_end(self, span: Any) -> None:
        if span.context.trace_flags.sampled:
            self.encoded.append(encode_span(span))

    @property
    def spans(self) -> dict[str, Span]:
        return {span.name: span for span in ScopeSpans.FromString(b"".join(self.encoded)).spans}


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def make(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    assert meet_otel()

    def made(sampler: Sampler | None = None, policy: str | None = None) -> trace.Tracer:
        senders: Any = [kept]
        provider = OwnProvider(sampler or Sampler(), lambda: Resource({"service.name": "shop"}))
        recorder = EntryRecorder(provider, Judge(policy, senders), senders)
        monkeypatch.setattr(here, "recorder", recorder)
        return OwnTracerProvider(recorder).get_tracer("app", "1.0")

    guard.failures.clear()
    yield made
    current.set(None)
    assert guard.failures == {}


def of(span: Span, key: str) -> Any:
    values = {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}
    return values.get(key)


def under(context: trace.SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def test_a_span_is_sent_as_it_was_set(make: Make, kept: Kept) -> None:
    tracer = make()
    link = trace.Link(PARENT, {"of": "link"})
    span = tracer.start_span("work", under(PARENT), SpanKind.CLIENT, {"a": 1}, [link], START)
    assert span.is_recording()
    span.set_attribute("b", [1, 2])
    span.set_attributes({"c": "x"})
    span.add_event("half", {"done": 0.5}, START + 1)
    span.add_link(UNSAMPLED)
    span.update_name("worked")
    span.set_status(Status(StatusCode.ERROR, "why"))
    assert span.name == "worked"  # type: ignore[attr-defined]
    span.end(START + 5)
    sent = kept.spans["worked"]
    assert (sent.trace_id[-1], sent.parent_span_id[-1], sent.kind) == (7, 8, Span.SPAN_KIND_CLIENT)
    assert (sent.start_time_unix_nano, sent.end_time_unix_nano) == (START, START + 5)
    assert (of(sent, "a"), of(sent, "c"), len(of(sent, "b").values)) == (1, "x", 2)
    assert [event.name for event in sent.events] == ["half"]
    assert [one.trace_id[-1] for one in sent.links] == [7, 7]
    assert (sent.status.code, sent.status.message) == (2, "why")
    assert not span.is_recording()
    assert span.get_span_context().span_id.to_bytes(8, "big") == sent.span_id


def test_an_exception_of_a_block_is_on_its_span(make: Make, kept: Kept) -> None:
    tracer = make()
    seen: list[Any] = []

    def work() -> None:
        with tracer.start_as_current_span("outer") as outer:
            seen.append(trace.get_current_span() is outer)
            with tracer.start_as_current_span("inner"):
                pass
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert seen == [True]
    spans = kept.spans
    assert spans["inner"].parent_span_id == spans["outer"].span_id
    assert spans["inner"].trace_id == spans["outer"].trace_id
    assert [event.name for event in spans["outer"].events] == ["exception"]
    assert spans["outer"].status.code == 2
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(
    ("sampler", "parent", "is_sent"),
    [
        (Sampler(0.0, by_parent=False), None, False),
        (Sampler(0.0), None, False),
        (Sampler(0.0), PARENT, True),
        (Sampler(1.0), UNSAMPLED, False),
        (Sampler(1.0, by_parent=False), UNSAMPLED, True),
        (Sampler(0.5, by_parent=False, is_ratio=True), PARENT, True),  # by its trace id, which is 7
    ],
)
def test_the_head_sampler_decides_on_them(
    sampler: Sampler, parent: trace.SpanContext | None, is_sent: bool, make: Make, kept: Kept
) -> None:
    context = Context() if parent is None else under(parent)
    span = make(sampler).start_span("work", context)
    assert span.get_span_context().trace_flags.sampled is is_sent
    span.end()
    assert list(kept.spans) == (["work"] if is_sent else [])


def test_a_server_span_is_a_request_with_stages_and_a_verdict(make: Make, kept: Kept) -> None:
    tracer = make(policy="GET /x within 50ms")
    attributes = {"http.request.method": "GET", "http.route": "/x"}
    span = tracer.start_span("GET /x", under(PARENT), SpanKind.SERVER, attributes, start_time=START)
    with trace.use_span(span):
        tracer.start_span("within", start_time=START + MS).end(START + 2 * MS)
    span.set_attribute("user", 7)
    span.end(START + 80 * MS)
    span.end(START + 90 * MS)
    spans = kept.spans
    entry = spans["GET /x"]
    assert (entry.trace_id[-1], entry.kind) == (7, Span.SPAN_KIND_SERVER)
    assert entry.end_time_unix_nano == START + 80 * MS
    assert (of(entry, "sla.breached"), of(entry, "user"), of(entry, "http.route")) == (True, 7, "/x")
    (stage,) = (one for one in spans.values() if of(one, "ml.stage"))
    assert (stage.start_time_unix_nano, stage.end_time_unix_nano) == (START, START + 80 * MS)
    assert spans["within"].parent_span_id == stage.span_id


def test_a_breach_takes_along_what_the_head_sampler_dropped(make: Make, kept: Kept) -> None:
    for took, names in ((80, {"POST /x", "handler", "within"}), (10, set())):
        kept.encoded.clear()
        tracer = make(Sampler(0.0), "* within 50ms")
        span = tracer.start_span("POST /x", under(UNSAMPLED), SpanKind.SERVER, start_time=START)
        with trace.use_span(span):
            tracer.start_span("within", start_time=START + MS).end(START + 2 * MS)
        span.end(START + took * MS)
        assert set(kept.spans) == names
        assert all(of(one, "sla.upgraded") for one in kept.spans.values())


def test_what_cannot_be_set_is_counted_and_raises_nothing(make: Make, kept: Kept) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("no text")

    cycle: list[Any] = []
    cycle.append(cycle)
    span = make().start_span("work", Context())
    odd: Any = Odd()
    span.set_attribute("cycle", cycle)
    span.set_attributes({"odd": odd})
    span.add_event("odd", {"odd": odd})
    span.record_exception(ValueError(odd))
    span.set_attribute("fine", 1)
    span.end()
    sent = kept.spans["work"]
    assert (of(sent, "fine"), sent.dropped_attributes_count, len(sent.events)) == (1, 4, 0)


def test_a_span_of_a_request_that_began_before_the_api_was_imported_is_in_it(make: Make, kept: Kept) -> None:
    tracer = make()
    span: Any = tracer.start_span("GET /x", Context(), SpanKind.SERVER, start_time=START)
    current.set(span.request)
    tracer.start_span("within").end()  # no context of OpenTelemetry's has the request
    span.end(START + MS)
    assert kept.spans["within"].trace_id == kept.spans["GET /x"].trace_id
