"""Reports of a called service, in process: `Server-Timing`, ORCA, bodies of engines, and what breaches say."""

from __future__ import annotations

import base64
import functools
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.instrumentation.clients.callee import (
    MAX_METRICS,
    Metric,
    Reported,
    Times,
    _class,
    load_in,
    metrics_of,
    read_headers,
    times_in,
    with_times,
)
from stagetrace.instrumentation.clients.gen_ai_response import times_in_body
from stagetrace.policy.verdict import NO_CALLEE, callee_of, report_in
from stagetrace.protocols import http_headers
from stagetrace.protocols.asgi_request import AsgiRequest
from stagetrace.request.marks import Mark
from stagetrace.request.remote_stages import hand_on, report_stages
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

MS = 1_000_000
PREFIX = "stagetrace.callee."
TOKENS = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
DURATIONS = st.integers(0, 10**9).map(lambda number: f"{number / 1000:.3f}")


# --- the grammar


@st.composite
def metrics(draw: st.DrawFn) -> tuple[str, Metric]:
    """Draw a metric as a server may write it, and what it means."""
    space = functools.partial(draw, st.sampled_from(["", " ", "\t"]))
    name, duration = draw(TOKENS), draw(st.none() | DURATIONS)
    quoted = draw(st.booleans())
    parameters = [f"desc{space()}={space()}" + quote(draw(TEXTS))] if draw(st.booleans()) else []
    if duration is not None:
        value = f'"{duration}"' if quoted else duration
        parameters.insert(draw(st.integers(0, len(parameters))), f"{draw(st.sampled_from(['dur', 'Dur']))}={value}")
    text = space() + name + "".join(f"{space()};{space()}{one}" for one in parameters) + space()
    return text, Metric(name, None if duration is None else float(duration))


def quote(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


@given(st.lists(metrics(), max_size=20))
def test_metrics_are_read_as_they_were_written(drawn: list[tuple[str, Metric]]) -> None:
    """Whatever commas, semicolons and quotes their descriptions have."""
    header = ",".join(text for text, _ in drawn)
    assert metrics_of(header) == [metric for _, metric in drawn][:MAX_METRICS]


@given(st.text(max_size=300) | st.text('a;,=" \\.1dur', max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for name, duration in metrics_of(text):
        assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
        assert duration is None or duration >= 0
    times_in(metrics_of(text), "x", is_whole=False)


@pytest.mark.parametrize("piece", ["m;dur=1,", '"', "\\", ";", ",", "a", '"a\\', 'a;x="', "=,;"])
def test_of_a_huge_header_a_small_part_is_read(piece: str) -> None:
    """10 MB of anything, in as much time as 4,096 characters of it: what follows changes nothing."""
    header = piece * (10_000_000 // len(piece))
    found = metrics_of(header)
    assert len(found) <= MAX_METRICS
    assert found == metrics_of(header[:8_192])
    assert read_headers([("server-timing", header)] * 3, is_whole=False) is None or piece == "m;dur=1,"


def test_what_is_cut_off_is_no_metric() -> None:
    header = ",".join(f"metric{number:08d};dur={number}" for number in range(1_000))
    assert metrics_of(header)[-1] == Metric("metric00000063", 63.0)
    assert metrics_of("a;dur=1, " + "b" * 5_000 + ";dur=2") == [Metric("a", 1.0)]


TIMES: dict[str, Times | None] = {
    "queue;dur=1.204, preprocess;dur=0.811, inference;dur=40.093, total;dur=42.108": Times("x", 1.204, 40.093, 42.108),
    "db;dur=3, handler;dur=5, total;dur=5": Times("x", 0, None, 5),  # without a queue, as all adds up
    "network.receive;dur=2, handler;dur=3, network.send;dur=1, total;dur=6": Times("x", 0, None, 6, 3),
    "queue;dur=1, queue;dur=2, inference;dur=3, total;dur=6": Times("x", 3, 3, 6),
    "queue;dur=9, total;dur=9, queue;dur=1, handler;dur=3, total;dur=4": Times("x", 1, None, 4),  # of two services
    "db;dur=3, total;dur=50": Times("x", None, None, 50),
    "total;dur=50": Times("x", None, None, 50),
    "queue;dur=5": Times("x", 5),
    "inference;dur=5, queue;dur=x": Times("x", None, 5),
    "db;dur=5, total": None,
    "": None,
}


@pytest.mark.parametrize("header", TIMES)
def test_metrics_of_known_names_are_times(header: str) -> None:
    found = times_in(metrics_of(header), "x", is_whole=False)
    assert found == TIMES[header]


# --- load


def test_load_is_the_same_in_each_of_its_forms() -> None:
    report = _class()()
    report.cpu_utilization, report.application_utilization, report.eps = 0.5, 1.25, 0.0
    report.named_metrics["kv"] = 0.75
    report.request_cost["tokens"] = 12
    message = report.SerializeToString()
    encoded = base64.b64encode(message).decode()
    expected = {
        "cpu_utilization": 0.5,
        "eps": 0.0,
        "application_utilization": 1.25,
        "request_cost.tokens": 12.0,
        "named_metrics.kv": 0.75,
    }
    text = ", ".join(f"{name}={value}" for name, value in expected.items())
    camel = '{"cpuUtilization": 0.5, "applicationUtilization": 1.25, "eps": 0, '
    camel += '"namedMetrics": {"kv": 0.75}, "requestCost": {"tokens": 12}}'
    assert load_in("endpoint-load-metrics-bin", message) == expected
    for name, value in (
        ("endpoint-load-metrics-bin", encoded),
        ("endpoint-load-metrics-bin", encoded.rstrip("=")),
        ("endpoint-load-metrics", f"BIN {encoded}"),
        ("endpoint-load-metrics", f"TEXT {text}"),
        ("endpoint-load-metrics", text.replace("=", ":")),
        ("endpoint-load-metrics", f"JSON {camel}"),
        ("endpoint-load-metrics-json", camel),
    ):
        assert load_in(name, value) == expected, value
        assert load_in(name, value.encode("latin-1") if "-bin" not in name else value) == expected


@given(
    st.sampled_from(["endpoint-load-metrics", "endpoint-load-metrics-bin", "endpoint-load-metrics-json"]),
    st.text(max_size=200) | st.binary(max_size=200) | st.text('TEXT JSONBIN{}[]":=,.1ae', max_size=200),
)
def test_any_load_is_read_without_an_error(name: str, value: str | bytes) -> None:
    for key, number in load_in(name, value).items():
        assert re.fullmatch(r"[A-Za-z0-9_.\-/]+", key)
        assert abs(number) < 1e300


@pytest.mark.parametrize("value", ["JSON " + "[" * 4_000, "TEXT " + "a=1," * 2_000_000, "JSON " + '{"a":1e999}'])
def test_load_that_is_too_large_or_deep_is_none(value: str) -> None:
    assert load_in("endpoint-load-metrics", value) == {}


# --- bodies

BODIES: list[tuple[dict[str, Any], Times | None]] = [
    (
        {"metrics": {"queue_time_ms": 12.5, "time_to_first_token_ms": 80, "generation_time_ms": 900, "mean_itl_ms": 9}},
        Times("vllm", 12.5, 980, first_token_ms=92.5, is_whole=True),
    ),
    ({"metrics": {"queue_time_ms": None, "time_to_first_token_ms": 80}}, Times("vllm", None, None, is_whole=True)),
    ({"meta_info": {"queue_time": 0.25, "e2e_latency": 1.5}}, Times("sglang", 250, None, 1500, is_whole=True)),
    ({"meta_info": {"e2e_latency": 1.5}}, Times("sglang", None, None, 1500, is_whole=True)),
    (
        {"nvext": {"timing": {"prefill_wait_time_ms": 12, "ttft_ms": 80, "total_time_ms": 1000}}},
        Times("dynamo", 12, None, 1000, first_token_ms=80, is_whole=True),
    ),
    ({"timings": {"prompt_ms": 43, "predicted_ms": 238}}, Times("llama.cpp", None, 281, is_whole=True)),
    (
        {"total_duration": 5_000_000, "prompt_eval_duration": 1_000_000, "eval_duration": 3_000_000},
        Times("ollama", None, 4, 5, is_whole=True),
    ),
    ({"usage": {"queue_time": 0.5, "total_time": 1.5, "prompt_tokens": 3}}, Times("groq", 500, 1500, is_whole=True)),
    ({"x_groq": {"usage": {"queue_time": 0.5, "total_time": 1.5}}}, Times("groq", 500, 1500, is_whole=True)),
    ({"usage": {"prompt_tokens": 3}, "metrics": [], "meta_info": None, "timings": {"prompt_ms": "7"}}, None),
    ({"metrics": {"queue_time_ms": True}, "meta_info": {"queue_time": -1, "e2e_latency": float("nan")}}, None),
    ({}, None),
]


@pytest.mark.parametrize(("body", "expected"), BODIES)
def test_engines_report_in_their_own_words(body: dict[str, Any], expected: Times | None) -> None:
    """In ms; the first token since the arrival, though vLLM counts from when the request was scheduled."""
    assert times_in_body(body) == expected


# --- attributes of the client span


def attributes(times: Times, until_response_ms: float, whole_ms: float) -> dict[str, Any]:
    found = with_times(None, times).attributes(until_response_ms, whole_ms)
    return {name.removeprefix(PREFIX): value for name, value in found.items()}


def test_headers_are_about_the_time_until_them_and_trailers_about_all() -> None:
    times = Times("x", 5, 20, 40, 3)
    known = {"source": "x", "queue_ms": 5, "compute_ms": 20, "total_ms": 40}
    assert attributes(times, 50, 500) == {**known, "network_ms": 13, "other_ms": 12, "response_ms": 450}
    assert attributes(times._replace(is_whole=True), 50, 500) == {**known, "network_ms": 463, "other_ms": 12}
    assert attributes(Times("x", 5), 50, 500) == {"source": "x", "queue_ms": 5}


@pytest.mark.parametrize(
    "times",
    [Times("x", None, None, 51), Times("x", 60), Times("x", 30, 30), Times("x", 10, 35, 40), Times("x", 51, 1, 50)],
)
def test_more_than_there_was_is_marked(times: Times) -> None:
    found = attributes(times, 50, 500)
    assert found.pop("implausible") is True
    assert not {"network_ms", "other_ms"} & set(found)
    assert found.get("queue_ms") == times.queue_ms


def test_a_body_counts_rather_than_headers() -> None:
    reported = read_headers(
        [(b"OpenAI-Processing-Ms", b"40"), (b"endpoint-load-metrics", b"TEXT eps=2")], is_whole=False
    )
    assert isinstance(reported, Reported)
    assert reported.times == Times("openai-processing-ms", total_ms=40)
    reported = with_times(reported, Times("vllm", 5, is_whole=True))
    assert reported.attributes(50, 60) == {
        f"{PREFIX}source": "vllm",
        f"{PREFIX}queue_ms": 5,
        f"{PREFIX}load": "eps=2",
    }


# --- what a breach says


def report(**values: Any) -> dict[str, Any]:
    return {f"{PREFIX}source": "x", **{PREFIX + name: value for name, value in values.items()}}


WHOLE = report(queue_ms=10.0, compute_ms=20.0, other_ms=5.0, total_ms=35.0, network_ms=2.0)
SAYS: list[tuple[list[tuple[int, int]], dict[int, Any], str]] = [
    ([(0, 40)], {}, ""),
    ([(0, 40)], {0: WHOLE}, "it reported 10.0 ms queue, 20.0 ms compute, 5.0 ms other work, the network took 2.0 ms"),
    ([(0, 40)], {0: report(queue_ms=10.0)}, "it reported 10.0 ms queue"),
    ([(0, 40)], {0: report(total_ms=30.0, network_ms=8.0)}, "it reported 30.0 ms in all, the network took 8.0 ms"),
    (
        [(0, 40)],
        {0: report(total_ms=30.0, network_ms=5.0, response_ms=5.0)},
        "it reported 30.0 ms in all, the network took 5.0 ms, the rest of the response 5.0 ms",
    ),
    ([(0, 40)], {0: report(load="eps=2")}, "load eps=2"),
    ([(0, 40)], {0: {**report(queue_ms=1.0), f"{PREFIX}load": "eps=2"}}, "it reported 1.0 ms queue; load eps=2"),
    (
        [(0, 40)],
        {0: report(queue_ms=10.0, total_ms=600.0, implausible=True)},
        "it reported up to 600.0 ms, which cannot be and is not used",
    ),
    (
        [(0, 40), (50, 90)],
        {0: WHOLE, 1: WHOLE},
        "2 calls reported 20.0 ms queue, 40.0 ms compute, 10.0 ms other work, the network took 4.0 ms",
    ),
    ([(0, 40), (50, 90)], {0: WHOLE, 1: report(queue_ms=1.0)}, "2 calls reported 11.0 ms queue"),
    ([(0, 40), (50, 90)], {1: report(queue_ms=1.0)}, "1 of 2 calls reported 1.0 ms queue"),
    ([(0, 40), (30, 95)], {0: WHOLE, 1: report(queue_ms=1.0)}, "the longest of 2 calls reported 1.0 ms queue"),
    ([(0, 40), (30, 95)], {0: WHOLE}, ""),  # nothing is known of the longest
    ([(0, 40), (50, 120)], {0: report(queue_ms=1.0), 1: WHOLE}, "it reported 1.0 ms queue"),  # one reaches beyond
]


@pytest.mark.parametrize(("times", "reports", "text"), SAYS)
def test_a_breach_divides_what_its_peer_reports(
    times: list[tuple[int, int]], reports: dict[int, Any], text: str
) -> None:
    calls = [("down", begin * MS, end * MS) for begin, end in times]
    known = {place: report_in(one) for place, one in reports.items()}
    found = callee_of("down", [(0, 100 * MS)], [*calls, ("other", 0, 99 * MS)], known)
    assert found.text == (f" ({text})" if text else "")
    if not text:
        assert found == NO_CALLEE
    if "not used" in text:
        assert found.attributes == {}
    elif "queue" in text:
        assert f"{found.attributes['sla.breach.peer.queue_ms']:.1f} ms queue" in text


def test_a_span_without_a_report_has_none() -> None:
    assert report_in({"http.request.method": "GET", "stagetrace.callee.queue_ms": 5}) == {}


# --- what we report


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set STAGETRACE_SERVER_TIMING; None: not at all."""

    def put(value: str | None) -> None:
        if value is None:
            monkeypatch.delenv("STAGETRACE_SERVER_TIMING", raising=False)
        else:
            monkeypatch.setenv("STAGETRACE_SERVER_TIMING", value)
        http_headers.wanted.cache_clear()

    yield put
    http_headers.wanted.cache_clear()


@pytest.mark.parametrize(
    ("value", "to_ours", "to_others", "asks"),
    [
        *[(None, True, False, True), ("", True, False, True), ("1", True, True, True), ("true", True, True, True)],
        *[("0", False, False, False), ("False", False, False, False)],
    ],
)
def test_who_gets_a_report(setting: Any, value: str | None, to_ours: bool, to_others: bool, asks: bool) -> None:
    setting(value)
    assert (http_headers.is_for(b"1"), http_headers.is_for(None), http_headers.asks()) == (to_ours, to_others, asks)


def record_at(now: list[int]) -> Request:
    return Request(clock=lambda: now[0], start=now[0])


def test_stages_until_now_are_named_as_if_the_request_ended_now() -> None:
    now = [100 * MS]
    record = record_at(now)
    assert record.totals_until(110 * MS) == {"handler": 10 * MS}
    now[0] = 120 * MS
    record.enter("inference")
    assert record.totals_until(130 * MS) == {"preprocess": 20 * MS, "inference": 10 * MS}
    now[0] = 140 * MS
    record.leave("inference")
    assert record.totals_until(145 * MS) == {"preprocess": 20 * MS, "inference": 20 * MS, "postprocess": 5 * MS}
    now[0] = 150 * MS
    record.enter("transform")
    now[0] = 160 * MS
    record.leave("transform")
    totals = {"preprocess": 20 * MS, "inference": 20 * MS, "postprocess": 20 * MS}
    assert record.totals_until(160 * MS) == totals
    record.enter("network.send")
    now[0] = 170 * MS
    assert record.close(100 * MS, 170 * MS).totals() == {**totals, "network.send": 10 * MS}
    assert record.totals_until(180 * MS) is None


def test_a_transform_alone_is_the_inference() -> None:
    now = [0]
    record = record_at(now)
    record.enter("transform", at=1 * MS)
    record.leave("transform", at=9 * MS)
    assert record.totals_until(10 * MS) == {"preprocess": 1 * MS, "inference": 8 * MS, "postprocess": 1 * MS}


def test_nothing_is_worked_out_while_a_part_may_come_in() -> None:
    """Else what another process reports later would find its place taken."""
    now = [1_000 * MS]
    record = record_at(now)
    key = hand_on(record, "worker", at=1_010 * MS, conclude=lambda: None)
    assert record.totals_until(1_100 * MS) is None
    report_stages(key, "worker", 1_020 * MS, [("inference", 1_020 * MS, 1_080 * MS, {}, None, None)], is_over=True)
    expected = {"preprocess": 10 * MS, "queue": 10 * MS, "inference": 60 * MS, "postprocess": 20 * MS}
    assert record.totals_until(1_100 * MS) == expected
    now[0] = 1_100 * MS
    assert record.close(1_000 * MS, 1_100 * MS).totals() == expected


def test_a_report_is_short_and_has_one_total(setting: Any) -> None:
    setting("1")
    begun = time.time_ns() - 100 * MS
    record = Request(start=begun)
    for number in range(40):
        mark = Mark("total" if number == 1 else f"stage {number} ü,;")
        record.begin_mark(mark, begun + number * MS + 1)
        record.end_mark(mark, begun + (number + 1) * MS)
    text = http_headers.timing_of(record)
    found = metrics_of(text)
    assert len(found) == http_headers.MAX_METRICS + 2  # with the rest, and the total
    assert [name for name, _ in found][1:3] == ["stage_0____", "total_"]
    assert [name for name, _ in found][-2:] == ["other", "total"]
    assert times_in(found, "x", is_whole=False) is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[
            ("stagetrace, a;dur=1, total;dur=2.0", ""),
            ("db;dur=1", "db;dur=1"),
            ("my-stagetrace, a", "my-stagetrace, a"),
        ],
        ("db;dur=1, stagetrace, a;dur=1, total;dur=2.0", "db;dur=1"),
        ("stagetrace, total;dur=1, x;dur=1, stagetrace, b;dur=1, total;dur=3", "x;dur=1"),
        ("stagetrace, a", "stagetrace, a"),
    ],
)
def test_what_was_meant_for_this_process_is_not_handed_on(value: str, expected: str) -> None:
    assert http_headers.without_asked(value) == expected


def test_headers_that_can_be_read_once_are_left_to_the_server() -> None:
    """As a message is left as it came, and may be sent again: its own list gets nothing added."""
    request: Any = AsgiRequest.__new__(AsgiRequest)
    request._caller = b"1"
    once = iter([(b"a", b"b")])
    assert request._with_timing({"type": "http.response.start", "headers": once}) is None
    assert next(once) == (b"a", b"b")
    message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
    for _ in range(2):
        sent = request._with_timing(message)
        assert [name for name, _ in sent["headers"]] == [b"a", b"server-timing"]
    assert message["headers"] == [(b"a", b"b")]
    assert request._with_timing({"type": "http.response.start", "status": 204})["headers"][0][0] == b"server-timing"
