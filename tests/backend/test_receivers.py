"""OTLP in, over real sockets: each form and encoding, what is refused and how it is said."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import zstandard
from google.protobuf import json_format
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from backend.running import (
    JSON,
    PROTOBUF,
    export,
    ids,
    names_of,
    post,
    raw_call,
    request,
    run_up,
    stored_spans,
    trailers,
)
from stagetrace.otlp.decode.json import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backend.running import Up

pytestmark = pytest.mark.usefixtures("services")

SMOKE = (pytest.mark.smoke,)


def _zstd_frames(body: bytes) -> bytes:
    """Two frames, one of which does not tell its size."""
    half = len(body) // 2
    stream = zstandard.ZstdCompressor().compressobj()
    return zstandard.ZstdCompressor().compress(body[:half]) + stream.compress(body[half:]) + stream.flush()


def _raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


ENCODED: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "plain": (None, bytes),
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "gzip, two members": ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    "deflate": ("deflate", zlib.compress),
    "deflate, bare": ("deflate", _raw_deflate),
    "zstd": ("ZSTD", zstandard.ZstdCompressor().compress),
    "zstd, two frames": ("zstd", _zstd_frames),
}


def status_of(answer: httpx.Response) -> Any:
    """Return the google.rpc.Status in a refusal, in whichever form it came."""
    if answer.headers["content-type"] == PROTOBUF:
        return Status.FromString(answer.content)
    return json_format.Parse(answer.text, Status())


@pytest.fixture
def channel(up: Up) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(up.target()) as opened:
        yield opened


@pytest.mark.parametrize("coding", [pytest.param(name, marks=SMOKE if name == "gzip" else ()) for name in ENCODED])
@pytest.mark.parametrize("kind", [PROTOBUF, JSON, "application/json; charset=utf-8"])
def test_each_form_in_each_encoding_is_stored(up: Up, kind: str, coding: str) -> None:
    encoding, encode_body = ENCODED[coding]
    sent = request("a span", "another")
    body = sent.SerializeToString() if kind == PROTOBUF else encode(sent).encode()
    answer = post(up, encode_body(body), kind, encoding)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == kind.partition(";")[0]
    assert answer.content == (b"" if kind == PROTOBUF else b"{}")
    assert [names_of(up, one) for one in ids(sent)] == [["a span"], ["another"]]


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_grpc_takes_each_compression_that_it_offers(up: Up, compression: grpc.Compression) -> None:
    sent = request("over gRPC " * 100)
    with grpc.insecure_channel(up.target(), compression=compression) as channel:
        assert export(channel, sent.SerializeToString()) == b""
    assert names_of(up, *ids(sent)) == ["over gRPC " * 100]


def test_json_as_other_exporters_write_it(up: Up) -> None:
    """Names or numbers for enums, text or numbers for 64-bit integers, base64 bytes, both spellings, unknown keys."""
    span = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "EEE19B7EC3C1B174",
        "name": "as others write",
        "kind": "SPAN_KIND_CLIENT",
        "start_time_unix_nano": 1544712660000000000,
        "endTimeUnixNano": "1544712661000000000",
        "status": {"code": "STATUS_CODE_ERROR"},
        "attributes": [
            {"key": "i", "value": {"intValue": "9007199254740993"}},
            {"key": "n", "value": {"intValue": 7}},
            {"key": "b", "value": {"bytesValue": base64.b64encode(b"\0\xff").decode()}},
            {"key": "d", "value": {"doubleValue": "NaN"}},
            {"key": "a", "value": {"arrayValue": {"values": [{"boolValue": True}, {"stringValue": "\u00e4"}]}}},
        ],
        "links": [{"traceId": "01" * 16, "spanId": "02" * 8}],
        "aFieldOfTomorrow": {"x": 1},
    }
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}], "later": 1}]}
    assert post(up, json.dumps(body).encode(), JSON).json() == {}
    (stored,) = stored_spans(up, str(span["traceId"]))
    values = {item["key"]: item["value"] for item in stored["attributes"]}
    assert stored["traceId"] == str(span["traceId"]).lower()
    assert (stored["kind"], stored["status"]) == (3, {"code": 2})
    assert (stored["startTimeUnixNano"], stored["endTimeUnixNano"]) == ("1544712660000000000", "1544712661000000000")
    assert values == {
        "i": {"intValue": "9007199254740993"},
        "n": {"intValue": "7"},
        "b": {"bytesValue": "AP8="},
        "d": {"doubleValue": "NaN"},
        "a": {"arrayValue": {"values": [{"boolValue": True}, {"stringValue": "\u00e4"}]}},
    }
    assert stored["links"] == [{"traceId": "01" * 16, "spanId": "02" * 8}]


@pytest.mark.parametrize(
    "change",
    [
        {"traceId": "00" * 16},
        {"traceId": "abcd"},
        {"traceId": "zz" * 16},
        {"traceId": 5},
        {"spanId": "00" * 8},
        {"startTimeUnixNano": "yesterday"},
        {"startTimeUnixNano": 10**4000},
        {"kind": {}},
        {"name": "\ud800"},
        {"attributes": [{"key": "k", "value": {"stringValue": 3}}]},
        {"events": 5},
        {"kind": "\ud800"},
        {"status": {"\ud800": 1, "code": "\ud800"}},
    ],
)
def test_a_bad_span_in_json_is_counted_and_its_neighbours_stay(up: Up, change: dict[str, Any]) -> None:
    sent = request("first", "bad", "last")
    body = json.loads(encode(sent))
    body["resourceSpans"][0]["scopeSpans"][0]["spans"][1].update(change)
    answer = post(up, json.dumps(body).encode(), JSON)
    assert answer.status_code == 200, answer.text
    partial = answer.json()["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert partial["errorMessage"]
    first, _, last = ids(sent)
    assert [names_of(up, first), names_of(up, last)] == [["first"], ["last"]]


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_partial_success_gives_how_many_and_why(up: Up, channel: grpc.Channel, transport: str) -> None:
    before = {name: up.metric(f'stagetrace_{name}{{transport="{transport}"}}') for name in COUNTED}
    sent = request("good", "no ids", "too short")
    spans = sent.resource_spans[0].scope_spans[0].spans
    spans[1].ClearField("trace_id")
    spans[2].span_id = b"1234"
    body = sent.SerializeToString()
    raw = export(channel, body) if transport == "grpc" else post(up, body).content
    answer = ExportTraceServiceResponse.FromString(raw)
    assert answer.partial_success.rejected_spans == 2
    assert "id" in answer.partial_success.error_message
    assert names_of(up, ids(sent)[0]) == ["good"]
    after = {name: up.metric(f'stagetrace_{name}{{transport="{transport}"}}') for name in COUNTED}
    grown = {name: after[name] - before[name] for name in COUNTED}
    assert grown == dict(zip(COUNTED, (1, len(body), 1, 2), strict=True))


COUNTED = ("requests_total", "received_bytes_total", "accepted_spans_total", "rejected_spans_total")
GOOD = request("good").SerializeToString()
DAMAGED = gzip.compress(GOOD)[:-8] + b"checksum"
BOMB = b"\x0a" * (65 << 20)

# name -> (body, content-type, content-encoding, HTTP status, google.rpc code, what the message says)
REFUSED: dict[str, tuple[bytes, str, str | None, int, int, str]] = {
    "not protobuf": (b"\x0a\xff\xff\xff\xff\x0fno", PROTOBUF, None, 400, 3, "no OTLP"),
    "not JSON": (b"{", JSON, None, 400, 3, "not JSON"),
    "no text": (b'"\xff"', JSON, None, 400, 3, "not JSON"),
    "an array": (b"[]", JSON, None, 400, 3, "not a JSON object"),
    "spans that are no array": (b'{"resourceSpans": 1}', JSON, None, 400, 3, "not an array"),
    "a resource that is no object": (b'{"resourceSpans": [1]}', JSON, None, 400, 3, "not an object"),
    "a scope that is no object": (b'{"resourceSpans": [{"scopeSpans": [[]]}]}', JSON, None, 400, 3, "not an object"),
    "deep JSON": (b"[" * 100_000, JSON, None, 400, 3, "not JSON"),
    "damaged gzip": (DAMAGED, PROTOBUF, "gzip", 400, 3, "decompressed"),
    "cut gzip": (gzip.compress(GOOD)[:-1], PROTOBUF, "gzip", 400, 3, "cut off"),
    "cut zstd": (zstandard.ZstdCompressor().compress(GOOD)[:-1], PROTOBUF, "zstd", 400, 3, "cut off"),
    "not gzip": (GOOD, PROTOBUF, "gzip", 400, 3, "decompressed"),
    "an unknown encoding": (GOOD, PROTOBUF, "br", 415, 3, "gzip, deflate, zstd"),
    "an unknown type": (GOOD, "text/plain", None, 415, 3, "application/x-protobuf"),
    "no type": (GOOD, "", None, 415, 3, "application/json"),
    "too large": (BOMB, PROTOBUF, None, 413, 8, "67108864"),
    "a gzip bomb": (gzip.compress(BOMB), PROTOBUF, "gzip", 413, 8, "67108864"),
    "a deflate bomb": (zlib.compress(BOMB), PROTOBUF, "deflate", 413, 8, "67108864"),
    "a zstd bomb": (zstandard.ZstdCompressor(level=19).compress(BOMB), PROTOBUF, "zstd", 413, 8, "67108864"),
    "a JSON bomb": (gzip.compress(BOMB), JSON, "gzip", 413, 8, "16777216"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_a_status_in_the_form_of_the_request(up: Up, case: str) -> None:
    body, kind, encoding, code, rpc_code, words = REFUSED[case]
    answer = post(up, body, kind, encoding)
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == (PROTOBUF if kind == PROTOBUF else JSON)
    assert "retry-after" not in answer.headers
    found = status_of(answer)
    assert found.code == rpc_code
    assert words in found.message


def test_a_body_without_a_length_is_cut_off_at_the_limit(up: Up) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(66):
            yield bytes(1 << 20)

    answer = httpx.post(up.traces, content=endless(), headers={"content-type": PROTOBUF}, timeout=60)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/v1/traces", 405), ("POST", "/v1/logs", 404), ("GET", "/", 404)]
)
def test_other_routes_answer_with_the_same_shape(up: Up, method: str, path: str, code: int) -> None:
    answer = httpx.request(method, f"{up.url('http_port')}{path}")
    assert answer.status_code == code
    assert set(answer.json()) == {"code", "message"}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"\x0a\xff\xff\xff\xff\x0fno", grpc.StatusCode.INVALID_ARGUMENT, "no OTLP"),
        (DAMAGED, grpc.StatusCode.INVALID_ARGUMENT, "decompressed"),
        (gzip.compress(BOMB), grpc.StatusCode.RESOURCE_EXHAUSTED, "67108864"),
        (zlib.compress(BOMB), grpc.StatusCode.RESOURCE_EXHAUSTED, "67108864"),
    ],
)
def test_grpc_refuses_for_good_what_sending_again_would_not_fix(
    channel: grpc.Channel, body: bytes, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        export(channel, body)
    assert caught.value.code() is code
    assert words in str(caught.value.details())
    found = Status.FromString(trailers(caught.value)["grpc-status-details-bin"])
    assert (found.code, list(found.details)) == (code.value[0], [])


def test_grpc_refuses_a_message_beyond_the_limit(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        export(channel, BOMB)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_grpc_has_no_other_services(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(channel, "/opentelemetry.proto.collector.logs.v1.LogsService/Export")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_connection_is_kept_over_many_requests_and_refusals(up: Up) -> None:
    used: set[tuple[str, int]] = set()
    with httpx.Client(limits=httpx.Limits(max_connections=1)) as client:
        for code, body in [(200, GOOD), (400, b"\x0a\xff\xff"), (200, GOOD), (413, gzip.compress(BOMB)), (200, GOOD)]:
            coded = {"content-encoding": "gzip"} if code == 413 else {}
            answer = client.post(up.traces, content=body, headers={"content-type": PROTOBUF, **coded}, timeout=60)
            assert answer.status_code == code
            used.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(used) == 1


def test_beyond_what_it_may_hold_at_once_it_asks_to_send_again(tmp_path: Path) -> None:
    """Retryable on both transports. The bytes are given back: what fits is taken afterwards."""
    with run_up(tmp_path, "--max-request=2MiB", "--max-in-flight=2MiB") as up:
        sent = request("x" * (1 << 20))
        large = sent.SerializeToString()
        answer = post(up, gzip.compress(large + large), PROTOBUF, "gzip")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert status_of(answer).code == 14
        with grpc.insecure_channel(up.target()) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                export(channel, gzip.compress(large + large))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            found = Status.FromString(trailers(caught.value)["grpc-status-details-bin"])
            assert found.details[0].type_url.endswith("google.rpc.RetryInfo")
            assert export(channel, large) == b""
        assert up.metric('stagetrace_refused_requests_total{reason="busy"}') == 2
        assert up.metric("stagetrace_requests_in_flight_bytes") == 0


def test_a_batch_of_nearly_64_mib_is_taken_over_both(up: Up, channel: grpc.Channel) -> None:
    for over_http in (True, False):
        sent = request(*["large"] * 4000)
        for span in sent.resource_spans[0].scope_spans[0].spans:
            span.attributes.add(key="blob").value.string_value = "x" * 16_000
        body = sent.SerializeToString()
        assert 61 << 20 < len(body) < 64 << 20
        assert (post(up, body).content if over_http else export(channel, body)) == b""
        assert [names_of(up, one) for one in (ids(sent)[0], ids(sent)[-1])] == [["large"], ["large"]]


def test_up_keeps_no_more_than_it_may(up: Up) -> None:
    """After all the bombs and batches of this file: nothing is still held, and the process never was large."""
    assert up.metric("stagetrace_requests_in_flight_bytes") == 0
    assert up.peak_kib() < 1_000_000
