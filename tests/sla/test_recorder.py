"""What a request is sent as in one go is what the SDK's processors would have been given, for any request."""

from __future__ import annotations

import contextvars
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState
from starlette.applications import Starlette
from starlette.routing import Route

from sink import SERVER
from stagetrace import KeepBreaches, SLASpanProcessor, guard, semconv, stage
from stagetrace.causes import baseline
from stagetrace.protocols import asgi as serve_module
from stagetrace.protocols import asgi_channels as passing
from stagetrace.protocols import asgi_request as asgi
from stagetrace.request import own_span as entry_module
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.request.stalls import BLOCKER, POOL, REQUEST, RIVAL, Stall
from stagetrace.sla.entry_recorder import EntryRecorder
from stagetrace.sources import thread_cpu
from stagetrace.sources.process_cpu import ProcessCpu
from stagetrace.tracing.span import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.native


START = 10**18
STEP_NS = 100_000
KEYS = st.text(min_size=1, max_size=20) | st.sampled_from(
    [
        "http.route",
        "url.path",
        "http.request.method",
        "client.address",
        "sla.verdict",
        "ml.stage.handler.ms",
        "ml.model.name",
    ]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
SCALARS = st.one_of(st.text(max_size=300), st.booleans(), NUMBERS, st.binary(max_size=50), st.just("\ud800"))
VALUES = SCALARS | st.none() | st.lists(st.text(max_size=5), max_size=4) | st.lists(st.integers(0, 2**40), max_size=4)
ATTRIBUTES = st.dictionaries(KEYS, VALUES, max_size=5)
NAMES = st.text(max_size=40)
STATES = st.sampled_from([TraceState(), TraceState([("a", "1"), ("b", "2")])])
CONTEXTS = st.builds(
    SpanContext, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans(), st.just(TraceFlags(1)), STATES
)
STATUSES = st.sampled_from([Status(StatusCode.OK), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "it broke ü")])
PLAIN = st.dictionaries(
    st.from_regex(r"\A[a-z]{1,5}\Z"), st.text(max_size=5) | st.booleans() | st.integers(0, 2**70), max_size=3
)
STALL_KINDS = [REQUEST, BLOCKER, RIVAL, POOL]
STEPS = st.one_of(
    st.tuples(st.just("attributes"), ATTRIBUTES),
    st.tuples(st.just("event"), NAMES, ATTRIBUTES, st.integers(0, 2**63)),
    st.tuples(st.just("link"), CONTEXTS, ATTRIBUTES),
    st.tuples(st.just("status"), STATUSES),
    st.tuples(st.just("rename"), NAMES),
    st.tuples(st.just("exception"), NAMES),
    st.tuples(st.just("stage"), st.text(max_size=70), PLAIN),
    st.tuples(st.just("inference"), PLAIN | st.just({"ml.model.name": "Model", "ml.batch.size": 3})),
    st.tuples(st.just("wait"), st.integers(0, 3)),
    st.tuples(st.just("child"), NAMES, ATTRIBUTES),
    st.tuples(
        st.just("stalls"), st.lists(st.tuples(st.sampled_from(STALL_KINDS), NAMES, st.integers(0, 3)), max_size=9)
    ),
)
UNSAMPLED = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-00", "tracestate": "a=1"}
PARENTS = st.sampled_from(
    [
        {},
        {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"},
        {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "a=1,b=2"},
        UNSAMPLED,
    ]
)
POLICIES = st.sampled_from([None, "* within 1m", "* within 1us", "GET /nowhere within 1s"])


ATTRIBUTES_ARE = 4  # their place among the arguments of a sampler


class Adds(Sampler):
    """A sampler of one's own: drops or keeps all, and adds what it saw of the route."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    def should_sample(self, *args: Any, attributes: Any = None, **_: Any) -> SamplingResult:
        if len(args) > ATTRIBUTES_ARE:
            attributes = args[ATTRIBUTES_ARE]
        trace.get_current_span().get_span_context()
        seen: dict[str, Any] = {"saw": (attributes or {}).get("http.route", "no route"), "url.path": "the sampler's"}
        return SamplingResult(self._decision, seen, TraceState([("of", "sampler")]))

    def get_description(self) -> str:
        return "Adds"


class LikeDefault(ParentBased):
    """A sampler of one's own that is described as the default one is."""

    def should_sample(self, *args: Any, **more: Any) -> SamplingResult:
        return Adds(Decision.RECORD_AND_SAMPLE).should_sample(*args, **more)


SAMPLERS = st.sampled_from(
    [
        ParentBased(ALWAYS_ON),
        ParentBased(Adds(Decision.DROP)),
        ALWAYS_OFF,
        ParentBased(TraceIdRatioBased(0.5)),
        *map(Adds, Decision),
    ]
)
LIMITS = st.sampled_from(
    [
        SpanLimits(),
        SpanLimits(max_span_attributes=2, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1),
        SpanLimits(max_attribute_length=7),
    ]
)
STATUS_CODES = st.sampled_from([200, 404, 500, 599])


METHODS = {
    "attributes": "set_attributes",
    "event": "add_event",
    "link": "add_link",
    "status": "set_status",
    "rename": "update_name",
}


class FixedIds(IdGenerator):
    """Draws the same ids each time."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def generate_trace_id(self) -> int:
        return next(self._numbers)

    def generate_span_id(self) -> int:
        return next(self._numbers)

    def is_trace_id_random(self) -> bool:
        return True


class Kept(SpanProcessor):
    """A processor that keeps ended spans, and a sender that keeps bytes."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.encoded = b""
        self.count = 0

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def put(self, _resource: Resource, _scope: Any, encoded: bytes, spans: int, *, breach: bool) -> None:  # noqa: ARG002
        self.encoded += encoded
        self.count += spans


@pytest.fixture(autouse=True)
def _no_failures() -> Iterator[None]:
    guard.failures.clear()
    yield
    assert guard.failures == {}


def take(step: tuple[Any, ...], tracer: trace.Tracer, now: Callable[[], int]) -> None:
    """Do as a handler would."""
    span: Any = trace.get_current_span()
    kind, *arguments = step
    record: Any = current.get()
    if kind in METHODS:
        getattr(span, METHODS[kind])(*arguments)
    elif kind == "exception":
        span.record_exception(ValueError(*arguments), {"k": 1}, now())
    elif kind == "stage":
        with stage(arguments[0], **arguments[1]):
            now()
    elif kind == "inference":
        record.enter("inference", arguments[0])
        record.leave("inference")
    elif kind == "stalls":
        code = take.__code__.replace(co_filename="app.py")
        found = ((of, ((code.replace(co_name=name), line),)) for of, name, line in arguments[0])
        record.stalls = [Stall(now(), of, stack, line * 10_000_000) for of, stack in found for _, line in stack]
    elif kind == "child":
        tracer.start_span(arguments[0], attributes=arguments[1], start_time=now()).end(now())
    else:
        for _ in range(arguments[0]):
            now()


def sent(monkeypatch: pytest.MonkeyPatch, request: dict[str, Any], *, in_one_go: bool) -> tuple[list[Any], Kept]:
    """Return the spans of one request as OTLP, however they came."""
    times = itertools.count(START, STEP_NS)

    def now() -> int:
        return next(times)

    provider = TracerProvider(
        sampler=KeepBreaches(request["sampler"]),
        resource=Resource({}),
        shutdown_on_exit=False,
        id_generator=FixedIds(),
    )
    processor = SLASpanProcessor(request["policy"], provider._active_span_processor)
    provider._active_span_processor = processor  # type: ignore[assignment]
    kept = Kept()
    provider.add_span_processor(kept)
    processor.has_others = not in_one_go
    limits = limits_of(request["limits"])
    with monkeypatch.context() as patch:
        patch.setattr(thread_cpu, "_is_used", False)  # by real clocks: what they tell of differs each time
        patch.setattr(baseline, "host_evidence", lambda _cause: "")  # of a real machine, likewise
        patch.setattr(serve_module, "time_ns", now)
        patch.setattr(asgi, "time_ns", now)
        patch.setattr(passing, "time_ns", now)
        patch.setattr(serve_module, "AsgiRequest", clocked(now))
        patch.setattr(entry_module, "span_limits", lambda: limits)
        patch.setattr(here, "recorder", EntryRecorder(provider, processor, [kept]))  # type: ignore[list-item]
        serve(request, provider.get_tracer("app"), now)
    spans = [*ScopeSpans.FromString(kept.encoded).spans]
    assert len(spans) == kept.count
    for resource in encode_spans(kept.spans).resource_spans:
        for scope in resource.scope_spans:
            spans += scope.spans
    return spans, kept


def limits_of(limits: SpanLimits) -> Limits:
    """Return the limits of the SDK as ours."""
    return Limits(
        limits.max_span_attributes,
        limits.max_event_attributes,
        limits.max_link_attributes,
        limits.max_events,
        limits.max_links,
        limits.max_attribute_length,
    )


def clocked(now: Callable[[], int]) -> type[asgi.AsgiRequest]:
    class Clocked(asgi.AsgiRequest):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.clock = now

    return Clocked


def serve(request: dict[str, Any], tracer: trace.Tracer, now: Callable[[], int]) -> None:
    """Run one request through `asgi/serve.py`; nothing in it waits, so no loop is needed."""
    status = request["status"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        now()

    async def handler(_app: Any, _scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for step in request["steps"]:
            take(step, tracer, now)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    scope = {
        "type": "http",
        "method": "GET",
        "path": request["path"],
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": request["client"],
        "query_string": b"",
        "app": request.get("app"),
        "headers": [(name.encode(), value.encode()) for name, value in request["parent"].items()],
    }
    coroutine = serve_module.serve(handler, None, scope, receive, send)
    with pytest.raises(StopIteration):
        contextvars.Context().run(coroutine.send, None)


def comparable(spans: list[Any]) -> list[dict[str, Any]]:
    """Return spans in order of time, ids in order of appearance, for those of stages are drawn at random."""
    spans = sorted(spans, key=lambda s: (s.start_time_unix_nano, -s.end_time_unix_nano, s.kind != SERVER, s.name))
    names: dict[bytes, int] = {}
    return [
        {
            "trace": span.trace_id,
            "id": names.setdefault(span.span_id, len(names)),
            "parent": span.parent_span_id if span.kind == SERVER else names.setdefault(span.parent_span_id, len(names)),
            "attributes": sorted(
                (pair.key, pair.value.SerializeToString(deterministic=True)) for pair in span.attributes
            ),
            "rest": rest(span),
        }
        for span in spans
    ]


def rest(span: Any) -> Any:
    copy = type(span)()
    copy.CopyFrom(span)
    for field in ("trace_id", "span_id", "parent_span_id", "attributes"):
        copy.ClearField(field)
    return copy


REQUESTS = st.fixed_dictionaries(
    {
        "steps": st.lists(STEPS, max_size=8),
        "policy": POLICIES,
        "sampler": SAMPLERS,
        "limits": LIMITS,
        "parent": PARENTS,
        "status": STATUS_CODES,
        "path": st.sampled_from(["", "/", "/ü/x"]) | st.text(max_size=200),
        "client": st.sampled_from([None, ("127.0.0.1", 5), ("", 0), ["::1", 7]]),
    }
)


SET_BY_THE_HANDLER = {
    "http.route": "/mine",
    "url.path": "/mine",
    "client.address": "mine",
    "ml.model.name": "mine",
    "ml.stage.inference.ms": -1.0,
    "sla.verdict": "mine",
}
CLASHING = {
    "steps": [("attributes", SET_BY_THE_HANDLER), ("inference", {"ml.model.name": "Model"}), ("wait", 1)],
    "policy": "* within 1us",
    "sampler": ParentBased(ALWAYS_ON),
    "limits": SpanLimits(),
    "parent": {},
    "status": 200,
    "path": "/x",
    "client": ("127.0.0.1", 5),
}


STALLED = {
    **CLASHING,
    "steps": [
        ("event", "mine", {"k": "v"}, 5),
        ("link", SpanContext(1, 2, is_remote=True), {}),
        ("stalls", [(REQUEST, "predict", 1), (REQUEST, "load", 2), (REQUEST, "predict", 1), (RIVAL, "\ud800", 3)]),
    ],
}


@given(REQUESTS)
@example(CLASHING)
@example(STALLED)
@example({**STALLED, "parent": UNSAMPLED})
def test_bytes_of_one_go_are_the_official_ones_of_the_sdks_spans(request: dict[str, Any]) -> None:
    cpu = {semconv.STAGETRACE_PROCESS_CPU_MS: 1.5}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ProcessCpu, "add_to", lambda _self, attributes, _now: attributes.update(cpu))
        fast, kept = sent(monkeypatch, request, in_one_go=True)
        slow, kept_slow = sent(monkeypatch, request, in_one_go=False)
    assert kept_slow.encoded == b""
    assert all(span.kind is not trace.SpanKind.SERVER for span in kept.spans)  # it did go in one go
    assert comparable(fast) == comparable(slow)
    for span in fast:
        assert len({pair.key for pair in span.attributes}) == len(span.attributes)


@pytest.mark.parametrize("in_one_go", [True, False])
def test_what_a_handler_sets_wins_over_the_request_and_not_over_stages_and_verdict(
    monkeypatch: pytest.MonkeyPatch, in_one_go: bool
) -> None:
    spans, _ = sent(monkeypatch, CLASHING, in_one_go=in_one_go)
    entry = next(span for span in spans if span.kind == SERVER)
    attributes = {pair.key: pair.value.string_value for pair in entry.attributes}
    mine = {key for key, value in SET_BY_THE_HANDLER.items() if attributes[key] == value}
    assert mine == {"http.route", "url.path", "client.address", "ml.model.name"}
    assert attributes["sla.verdict"] == "breach"


@pytest.mark.parametrize("in_one_go", [True, False])
@pytest.mark.parametrize(
    ("parent", "limits"), [({}, SpanLimits()), (UNSAMPLED, SpanLimits()), ({}, SpanLimits(max_events=1))]
)
def test_a_breach_has_its_line_of_code_and_its_stacks_however_it_is_sent(
    monkeypatch: pytest.MonkeyPatch, in_one_go: bool, parent: dict[str, str], limits: SpanLimits
) -> None:
    """Beside the handler's own events; so if the head sampler had dropped it. A good request has neither."""
    request = {**STALLED, "parent": parent, "limits": limits}
    entry = next(span for span in sent(monkeypatch, request, in_one_go=in_one_go)[0] if span.kind == SERVER)
    attributes = {pair.key: pair.value.string_value for pair in entry.attributes}
    assert attributes[semconv.SLA_BREACH_CODE] == "app.py:1 in predict"
    assert attributes[semconv.SLA_BREACH_EVIDENCE].endswith("; at app.py:1 in predict (2 of 3 samples)")
    assert [event.name for event in entry.events] == ["mine", "stall", "stall", "stall"]
    found = [{pair.key: pair.value for pair in event.attributes} for event in entry.events[1:]]
    assert [one[semconv.STALL_OF].string_value for one in found] == ["request", "request", "rival"]
    assert [one[semconv.CODE_STACKTRACE].string_value for one in found] == [
        f'  File "app.py", line {line}, in {name}' for line, name in ((1, "predict"), (2, "load"), (3, "\\ud800"))
    ]
    assert found[2][semconv.STALL_GIL_MS].double_value == 30.0
    good = {**request, "policy": "* within 1m", "parent": {}}
    entry = next(span for span in sent(monkeypatch, good, in_one_go=in_one_go)[0] if span.kind == SERVER)
    assert [event.name for event in entry.events] == ["mine"]
    assert semconv.SLA_BREACH_CODE not in {pair.key for pair in entry.attributes}


@pytest.mark.parametrize("in_one_go", [True, False])
@pytest.mark.parametrize(
    ("parent", "policy", "names"),
    [
        ({}, None, {"GET", "handler", "child"}),
        (UNSAMPLED, None, set()),
        (UNSAMPLED, "* within 1m", set()),
        (UNSAMPLED, "* within 1us", {"GET", "handler", "child"}),
    ],
)
def test_what_the_head_dropped_comes_back_whole_with_a_breach(
    monkeypatch: pytest.MonkeyPatch, in_one_go: bool, parent: dict[str, str], policy: str | None, names: set[str]
) -> None:
    request = {**CLASHING, "parent": parent, "policy": policy, "steps": [("child", "child", {})]}
    spans, _ = sent(monkeypatch, request, in_one_go=in_one_go)
    assert {span.name for span in spans if not span.name.startswith("network.")} == names
    marks = [pair.value.bool_value for span in spans for pair in span.attributes if pair.key == "sla.upgraded"]
    assert marks == ([True] * len(spans) if parent else [])


@pytest.mark.parametrize("in_one_go", [True, False])
@pytest.mark.parametrize(
    "sampler", [Adds(Decision.RECORD_AND_SAMPLE), ParentBased(Adds(Decision.RECORD_AND_SAMPLE)), LikeDefault(ALWAYS_ON)]
)
def test_a_sampler_of_ones_own_sees_the_route_and_adds_attributes(
    monkeypatch: pytest.MonkeyPatch, in_one_go: bool, sampler: Sampler
) -> None:
    """What it adds stands below what the request is known by, as with opentelemetry-instrumentation-asgi."""
    app = Starlette(routes=[Route("/{what}", lambda _: None)])
    request = {**CLASHING, "sampler": sampler, "app": app, "steps": []}
    entry = next(span for span in sent(monkeypatch, request, in_one_go=in_one_go)[0] if span.kind == SERVER)
    attributes = {pair.key: pair.value.string_value for pair in entry.attributes}
    assert (entry.name, entry.trace_state) == ("GET /{what}", "of=sampler")
    assert (attributes["saw"], attributes["http.route"], attributes["url.path"]) == ("/{what}", "/{what}", "/x")
