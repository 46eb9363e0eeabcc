"""What `jaeger.api_v3` allows and Jaeger 2.13 does not do itself: a server of our own on a real socket does it here.

Also Jaeger itself where its configuration is not the usual one: a small memory storage, and clock skew adjustment.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData
from opentelemetry.trace import SpanKind

from backends import run_jaeger
from conftest import need
from messages import add_scope, leaves, put
from stagetrace import semconv
from stagetrace.errors import StoreError
from stagetrace.store import Selection, open_store
from stagetrace.store.jaeger import api_v3
from stagetrace.store.jaeger import reader as jaeger_reader
from stagetrace.store.jaeger.client import JaegerClient
from stagetrace.store.jaeger.reader import Columns, JaegerReader
from stagetrace.store.rows import spans_of
from store.feed import MS, entry, recent, send

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from stagetrace.store.jaeger.search_windows import Picked

SERVICE = "svc"


def part(trace: int, span: int, start: int, **attributes: bool | float | str) -> TracesData:
    """Return one message with one span: an entry span if an attribute is its verdict, else a child of span 1."""
    data = TracesData()
    added = add_scope(data, SERVICE).spans.add(
        trace_id=trace.to_bytes(16, "big"),
        span_id=span.to_bytes(8, "big"),
        start_time_unix_nano=start,
        end_time_unix_nano=start + 10 * MS,
    )
    if semconv.SLA_BREACHED in attributes:
        added.kind = Span.SPAN_KIND_SERVER
    else:
        added.parent_span_id = (1).to_bytes(8, "big")
    put(added, attributes)
    return data


class Strict(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """An api_v3 server to the letter: the end excluded, to the nanosecond, any order, each span in its own message."""

    def __init__(
        self,
        starts: list[int],
        refuse: tuple[grpc.StatusCode, str] | None = None,
        greatest: int = 2**31 - 1,
        long: Sequence[TracesData] = (),
    ) -> None:
        """Hold a breached trace for each of `starts`, and whole traces `long`."""
        self.starts, self.long, self.refuse, self.greatest = starts, long, refuse, greatest
        self.depths: list[int] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if handler_call_details.method == api_v3.path("GetServices"):
            return grpc.unary_unary_rpc_method_handler(
                lambda *_: api_v3.GetServicesResponse(services=[SERVICE]),
                api_v3.GetServicesRequest.FromString,
                api_v3.GetServicesResponse.SerializeToString,
            )
        if handler_call_details.method == api_v3.path("FindTraces"):
            return grpc.unary_stream_rpc_method_handler(
                self.find, api_v3.FindTracesRequest.FromString, TracesData.SerializeToString
            )
        return None

    def find(self, request: Any, context: grpc.ServicerContext) -> Iterator[TracesData]:
        if self.refuse is not None:
            context.abort(*self.refuse)
        query = request.query
        assert query.service_name == SERVICE
        assert dict(query.attributes) in ({}, {"sla.breached": "true"})  # {}: to count, or for what is no breach
        self.depths.append(query.search_depth)
        if query.search_depth > self.greatest:
            context.abort(grpc.StatusCode.UNKNOWN, "search depth must be greater than 0 and less than max traces")
        low, high = query.start_time_min.ToNanoseconds(), query.start_time_max.ToNanoseconds()
        hits = [trace for trace, start in enumerate(self.starts, 1) if low <= start < high]
        hits += [-1 - at for at, trace in enumerate(self.long) if any(low <= one < high for one in _starts(trace))]
        random.Random(len(hits)).shuffle(hits)
        for trace in hits[: query.search_depth]:
            if trace < 0:
                yield self.long[-1 - trace]
                continue
            start = self.starts[trace - 1]
            yield part(trace, 2, start, **{semconv.ML_STAGE: "inference"})
            yield part(trace, 1, start, **{semconv.SLA_BREACHED: True})
            yield part(trace, 3, start, **{semconv.ML_STAGE: "inference"})


def _starts(trace: TracesData) -> list[int]:
    return [span.start_time_unix_nano for _, _, span in leaves(trace)]


@contextmanager
def served(handler: Strict) -> Iterator[JaegerClient]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        client = JaegerClient("127.0.0.1", port, timeout_s=30)
        try:
            yield client
        finally:
            client.close()
            server.stop(None).wait()


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(
    starts=st.lists(st.integers(10_000, 30_000), max_size=40),
    bounds=st.tuples(st.integers(9_000, 31_000), st.integers(9_000, 31_000)).map(sorted),
    depth=st.integers(1, 9),
    limit=st.none() | st.integers(1, 45),
)
def test_any_search_depth_finds_the_same(starts: list[int], bounds: list[int], depth: int, limit: int | None) -> None:
    """Over 20 us with up to 40 breaches: what is found depends on the window alone, never on how it was cut up."""
    since, until = bounds
    with served(Strict(starts)) as client:
        answer = JaegerReader(client, depth=depth, max_depth=64).breaches(
            Selection(since, until, service=SERVICE, limit=limit)
        )
    inside = sorted((-start, trace) for trace, start in enumerate(starts, 1) if since <= start < until)
    assert [(-one.start_unix_nano, int(one.trace_id, 16)) for one in answer.breaches] == inside[:limit]
    assert answer.complete == (limit is None or limit >= len(inside))
    assert (answer.tally.reason, answer.tally.requests, answer.tally.missed) == (None, len(inside), len(inside))


def test_a_trace_in_several_messages_is_one_trace() -> None:
    with served(Strict([5_000])) as client:
        (one,) = JaegerReader(client).breaches(Selection(0, 10_000, service=SERVICE)).breaches
    assert dict(one.stages) == {"inference": 20.0}


def test_never_asks_for_more_than_the_greatest_depth() -> None:
    """Jaeger's badger storage dies of a depth that is too great."""
    handler = Strict([5_000] * 50)
    with served(handler) as client:
        answer = JaegerReader(client, depth=10, max_depth=32).breaches(Selection(0, 10_000, service=SERVICE))
    assert not answer.complete
    assert max(handler.depths) == 32


@pytest.mark.thorough
def test_settles_quickly_on_the_greatest_depth_that_the_store_accepts() -> None:
    handler = Strict([5_000] * 450, greatest=475)
    with served(handler) as client:
        answer = JaegerReader(client, depth=250, max_depth=2_500).breaches(Selection(5_000, 5_001, service=SERVICE))
    assert answer.complete
    assert len(answer.breaches) == 450
    assert len(handler.depths) < 10


@pytest.mark.thorough
def test_a_crowd_in_a_wide_window_takes_few_searches() -> None:
    """All of a day's breaches are of its last 3 ms: to halve the day 25 times, each time with a full answer, costs."""
    day_ns = 86_400 * 10**9
    handler = Strict([day_ns - number * 1_000 for number in range(3_000)])
    with served(handler) as client:
        answer = JaegerReader(client).breaches(Selection(0, day_ns + 1, service=SERVICE))
        assert answer.complete
        assert len(answer.breaches) == 3_000
        assert len(handler.depths) < 16
        handler.depths.clear()
        (newest,) = JaegerReader(client).breaches(Selection(0, day_ns + 1, service=SERVICE, limit=1)).breaches
    assert newest.start_unix_nano == day_ns
    assert len(handler.depths) < 20


def test_an_id_is_searched_by_its_beginning_among_the_newest_traces_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jaeger_reader, "NEWEST_TRACES", 5)
    now = time.time_ns() // 1000 * 1000
    handler = Strict([now - number * 60_000_000_000 for number in range(20)])  # a minute each; trace 1 is the newest
    with served(handler) as client:
        reader = JaegerReader(client)
        found, none = reader.trace_ids("0" * 30), reader.trace_ids("ab")
    assert [int(one, 16) for one in found.ids] == [1, 2, 3, 4, 5]
    searched = "Jaeger cannot search by a part of an id, so only the newest 5 traces were searched"
    assert (found.complete, found.reason) == (none.complete, none.reason) == (False, searched)
    assert none.ids == ()
    assert len(handler.depths) < 40
    handler = Strict([now - 86_400_000_000_000])
    with served(handler) as client:
        found = JaegerReader(client).trace_ids("0" * 30)
    assert found.ids == (f"{1:032x}",)  # of yesterday, where the last hour has none
    assert found.reason == searched.replace("newest 5 traces", "traces of the last 30 days")


@pytest.mark.thorough
def test_even_traffic_is_read_in_windows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full answer holds is asked for again; so only the first ones, which tell how wide a window may be, are."""
    handler = Strict([number * 1_000_000 for number in range(1, 5_001)])
    answers: list[int] = []
    original = Columns.pick

    def counted(self: Columns, *given: Any) -> Picked:
        found = original(self, *given)
        answers.append(found.traces)
        return found

    monkeypatch.setattr(Columns, "pick", counted)
    with served(handler) as client, JaegerReader(client, depth=500).relations(Selection(0, 6 * 10**9)) as relations:
        assert list(relations.select("SELECT count(*) FROM requests")[1]) == [(5_000,)]
    assert sum(answers) < 2 * 5_000
    assert answers.count(500) <= 6


@pytest.mark.thorough
def test_a_long_trace_at_each_end_of_a_window_is_no_trap() -> None:
    """Traces that run all the time are found in each part of a window, near to wherever it was cut."""
    long = [part(10_000 + number, 1, 0) for number in range(40)]
    for trace in long:
        spans = trace.resource_spans[0].scope_spans[0].spans
        for at in range(25_000, 2_000_000, 25_000):
            spans.add(trace_id=spans[0].trace_id, span_id=at.to_bytes(8, "big"), start_time_unix_nano=at)
    handler = Strict([1_000_000 + number * 1_000 for number in range(200)], long=long)
    with served(handler) as client:
        messages = list(JaegerReader(client, depth=50).iter_otlp(Selection(0, 2_000_000), []))
    assert len({one.span.trace_id for message in messages for one in spans_of(message)}) == 240
    assert len(handler.depths) < 120


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "no token", "it refuses us without a token (no token)"),
        (grpc.StatusCode.PERMISSION_DENIED, "no token", "it refuses us without a token (no token)"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", "a response is too large"),
        (grpc.StatusCode.UNKNOWN, "disk\n\tgone " + "x " * 500, "Jaeger reports UNKNOWN: disk gone x x"),
        (grpc.StatusCode.INTERNAL, "", "Jaeger reports INTERNAL: no details"),
        (grpc.StatusCode.UNKNOWN, "search depth must be 0", "refuses every search (search depth must be 0)"),
    ],
)
def test_an_error_of_jaeger_itself_is_shown(code: grpc.StatusCode, text: str, expected: str) -> None:
    with served(Strict([], refuse=(code, text))) as client, pytest.raises(StoreError) as caught:
        JaegerReader(client).breaches(Selection(0, 10_000, service=SERVICE))
    lines = str(caught.value).splitlines()
    assert expected in lines[0]
    assert len(lines) == 2
    assert max(map(len, lines)) < 300


@pytest.mark.thorough
def test_a_memory_store_smaller_than_a_search_is_read_in_full(tmp_path: Path) -> None:
    """It refuses a depth above its `max_traces`; ours settles below, also where one microsecond holds most of it."""
    need("jaeger")
    base = recent()
    spans = [entry("small", base) for _ in range(70)] + [entry("small", base + n * MS) for n in range(1, 21)]
    also = "extensions: {jaeger_storage: {backends: {main: {memory: {max_traces: 97}}}}}"
    with run_jaeger(tmp_path, also=also) as jaeger:
        send(jaeger, spans)
        with open_store(jaeger.url) as reader:
            answer = reader.breaches(Selection(base, base + 1000 * MS, service="small"))
    assert {one.span_id for one in answer.breaches} == {one.span_id for one in spans}
    assert answer.complete


def test_times_are_those_recorded_also_where_jaeger_hides_clock_skew(tmp_path: Path) -> None:
    """Jaeger can shift a service whose clock is behind that of its caller; its times would then fit no window."""
    need("jaeger")
    base = recent()
    front = entry("front", base)
    call = front.child("GET", base + MS, base + 70 * MS, kind=SpanKind.CLIENT)
    behind = base - 2000 * MS
    back = entry("back", behind, ms=60, trace=front.trace, parent=call.span)
    with run_jaeger(tmp_path, also="extensions: {jaeger_query: {max_clock_skew_adjust: 1h}}") as jaeger:
        send(jaeger, [front, call, back])
        with open_store(jaeger.url) as reader:
            answer = reader.breaches(Selection(behind, behind + 1, service="back"))
            trace = reader.trace(front.trace_id)
    assert [one.start_unix_nano for one in answer.breaches] == [behind]
    assert {one.span_id: one.start_unix_nano for one in trace.spans} == {
        one.span_id: one.start for one in (front, call, back)
    }
