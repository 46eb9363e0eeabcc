"""Files of OTLP in every framing, whole, cut off and broken: what can be read is, and what cannot is said."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from backend.hostile.probes_bodies import trace_of, with_deep
from backend.running import PROTOBUF
from cli.running import cli
from messages import add_scope, leaves
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.json import encode
from stagetrace.store import Selection, open_store
from stagetrace.store.file import reader as documents
from stagetrace.store.file import reader as otlp
from stagetrace.store.file.reader import complete_lines
from stagetrace.store.rows import spans_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVER = Selection(0, 2**63 - 1)


def message(number: int) -> ExportTraceServiceRequest:
    """Return a request with one span, of a size of its own."""
    request = ExportTraceServiceRequest()
    add_scope(request, "files").spans.add(
        trace_id=number.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        name="x" * number * 50,
        kind=2,
        start_time_unix_nano=number,
        end_time_unix_nano=number + 1,
    )
    return request


MESSAGES = [message(number) for number in range(1, 5)]
CONTENTS = [one.SerializeToString() for one in MESSAGES]


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


FRAMINGS = {
    "one": CONTENTS[0],
    "one-after-another": b"".join(CONTENTS),
    "four-bytes": b"".join(len(one).to_bytes(4, "big") + one for one in CONTENTS),
    "varint": b"".join(varint(len(one)) + one for one in CONTENTS),
}


def read(path: Path) -> tuple[list[int], list[str]]:
    cuts: list[str] = []
    starts = [span.start_time_unix_nano for request in otlp.read_file(path, cuts) for _, _, span in leaves(request)]
    return starts, cuts


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("suffix", otlp.PROTOBUF)
def test_each_framing_of_protobuf_is_read(tmp_path: Path, framing: str, suffix: str) -> None:
    path = tmp_path / f"spans{suffix}"
    path.write_bytes(FRAMINGS[framing])
    assert read(path) == ([1] if framing == "one" else [1, 2, 3, 4], [])


@pytest.mark.parametrize("framing", ["four-bytes", "varint"])
def test_a_cut_in_any_place_keeps_the_messages_before_it_and_is_reported(tmp_path: Path, framing: str) -> None:
    content = FRAMINGS[framing]
    header = 4 if framing == "four-bytes" else len(varint(len(CONTENTS[0])))
    ends = [0]
    for one in CONTENTS:
        ends.append(ends[-1] + (4 if framing == "four-bytes" else len(varint(len(one)))) + len(one))
    path = tmp_path / "spans.pb"
    for size in range(header + 1, len(content), 7):
        path.write_bytes(content[:size])
        whole = sum(size >= end for end in ends) - 1
        if whole == 0:
            nothing = "holds no OTLP spans: its first message is no request, or is cut off"
            with pytest.raises(StoreError, match=nothing):
                read(path)
            continue
        found, cuts = read(path)
        assert found == list(range(1, whole + 1))
        assert cuts == ([] if size in ends else [f"spans.pb is cut off or broken behind its message {whole}"])


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([*otlp.PROTOBUF, *otlp.JSON]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"spans{suffix}"
    path.write_bytes(content)
    try:
        read(path)
    except StoreError as error:
        assert len(str(error).splitlines()) == 2  # noqa: PT017


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 400), byte=st.integers(0, 255))
def test_one_wrong_byte_in_json_is_an_error_of_its_line_alone(
    tmp_path_factory: pytest.TempPathFactory, cut: int, byte: int
) -> None:
    lines = [encode(one).encode() for one in MESSAGES]
    broken = bytearray(lines[1])
    broken[cut % len(broken)] = byte
    path = tmp_path_factory.mktemp("json") / "spans.jsonl"
    path.write_bytes(b"\n".join([lines[0], bytes(broken), lines[2], b""]))
    found, _ = read(path)
    assert found[:1] == [1]
    assert found[-1:] == [3]


def test_json_may_be_one_object_over_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(json.loads(encode(MESSAGES[1])), indent=2))
    assert read(path) == ([2], [])


@pytest.mark.parametrize("line", ["", "[]", "null", '{"resourceSpans": 3}', '{"resourceSpans": [3]}', "[" * 50_000])
def test_what_is_no_request_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        documents.read_document(documents.parse(line))


def test_ids_are_hex_of_their_length() -> None:
    given = json.loads(encode(MESSAGES[0]))
    span = given["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (span["traceId"], span["spanId"]) == ("0" * 31 + "1", "0" * 15 + "1")
    for wrong in ("zz" * 16, "00" * 15, "A" * 24, "0" * 33):
        span["traceId"] = wrong
        with pytest.raises(ValueError, match=r"hex"):
            documents.read_document(json.loads(json.dumps(given)))


def test_other_signals_in_the_file_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text('{"resourceMetrics":[{}]}\n' + encode(MESSAGES[0]) + '\n{"resourceLogs":[{}]}\n')
    assert read(path) == ([1], [])


def test_a_folder_is_its_files_and_a_mixed_one_is_refused(tmp_path: Path) -> None:
    for name, one in zip(("a.jsonl", "b.jsonl"), MESSAGES, strict=False):
        (tmp_path / name).write_text(encode(one) + "\n")
    (tmp_path / "notes.txt").write_text("not ours")
    with open_store(tmp_path.as_uri()) as reader:
        assert sum(len(one.resource_spans) for one in reader.iter_otlp(EVER, [])) == 2
        assert reader.services() == ("files",)
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match=r"holds Parquet beside other files\n"):
        open_store(tmp_path.as_uri())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file://spans.jsonl", "the path must be whole"),
        ("file:///no/such.jsonl", "there is no file /no/such.jsonl"),
        ("file:///dev/null", "is nothing that can be read"),
    ],
)
def test_a_bad_file_url_names_what_is_wrong(url: str, expected: str) -> None:
    with pytest.raises(StoreError, match=expected) as caught:
        open_store(url)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000])
def test_parquet_that_is_none_is_a_short_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spans.parquet"
    path.write_bytes(content)
    with open_store(str(path)) as reader, pytest.raises(StoreError, match=r"cannot read ") as caught:
        reader.services()
    assert len(str(caught.value).splitlines()) == 2


def test_lines_are_taken_when_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    first, second = (encode(one) + "\n" for one in MESSAGES[:2])
    path.write_text(first + second[:20])
    found, offset = complete_lines(path, 0)
    assert (len(found), offset) == (1, len(first))
    path.write_text(first + second)
    found, offset = complete_lines(path, offset)
    assert (found, offset) == (MESSAGES[1:2], len(first + second))
    path.write_text(first)  # rotated: begun anew
    assert complete_lines(path, offset) == (MESSAGES[:1], len(first))


def spans_in(found: ExportTraceServiceRequest) -> list[tuple[str, str, str]]:
    return [(span.trace_id.hex(), span.span_id.hex(), span.name) for _, _, span in leaves(found)]


def in_base64(document: Any) -> Any:
    """Return a document with its ids as protobuf's own JSON has them."""
    if isinstance(document, list):
        return [in_base64(one) for one in document]
    if not isinstance(document, dict):
        return document
    ids = ("traceId", "spanId", "parentSpanId")
    return {
        key: b64encode(bytes.fromhex(value)).decode() if key in ids else in_base64(value)
        for key, value in document.items()
    }


def older(document: Any) -> Any:
    """Return OTLP as it was before 1.0."""
    (resource,) = document["resourceSpans"]
    scopes = [
        {"instrumentationLibrary": one.get("scope", {}), "spans": one["spans"]} for one in resource.pop("scopeSpans")
    ]
    return {"resourceSpans": [{**resource, "instrumentationLibrarySpans": scopes}]}


FORMS: Final[dict[str, Callable[[Any], str]]] = {
    "result": lambda one: json.dumps({"result": one}),
    "result-over-lines": lambda one: json.dumps({"result": one}, indent=2),
    "results": lambda one: json.dumps({"result": one}, indent=1) + json.dumps({"result": {"resourceSpans": []}}),
    "tempo": lambda one: json.dumps({"trace": one, "metrics": {}}),
    "tempo-v1": lambda one: json.dumps({"batches": in_base64(one)["resourceSpans"]}, indent=1),
    "before-1.0": lambda one: json.dumps(older(one)),
    "base64": lambda one: json.dumps(in_base64(one)),
    "list": lambda one: json.dumps([one]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_otlp_is_read(tmp_path: Path, form: str) -> None:
    """The same spans, each with its scope and its service."""
    path = tmp_path / "spans.json"
    path.write_text(FORMS[form](json.loads(encode(MESSAGES[1]))))
    cuts: list[str] = []
    found = [span for request in otlp.read_file(path, cuts) for span in spans_in(request)]
    assert (found, cuts) == (spans_in(MESSAGES[1]), [])
    with open_store(str(path)) as reader:
        assert reader.services() == ("files",)


def test_a_scope_of_before_1_0_keeps_its_name() -> None:
    given = json.loads(encode(MESSAGES[1]))
    given["resourceSpans"][0]["scopeSpans"][0]["scope"] = {"name": "shop", "version": "2"}
    found = documents.read_document(older(given))
    assert found is not None
    assert found.request.resource_spans[0].scope_spans[0].scope.name == "shop"


def indexed(number: int) -> dict[str, Any]:
    """Return a span as Jaeger keeps it in Elasticsearch, with one tag as a field."""
    return {
        "traceID": f"{number:032x}", "spanID": f"{number:016x}", "operationName": "GET /", "startTime": number,
        "startTimeMillis": 0, "duration": 5, "references": [], "logs": [],
        "tags": [{"key": "span.kind", "type": "string", "value": "server"}], "tag": {"http@route": "/"},
        "process": {"serviceName": "files", "tags": [], "tag": {"host@name": "a"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(indexed(1)) + "\n" + json.dumps(indexed(2)) + "\n",
        "".join(json.dumps({"_index": "jaeger-span", "_source": indexed(number)}) + "\n" for number in (1, 2)),
        json.dumps({"took": 1, "hits": {"hits": [{"_source": indexed(number)} for number in (1, 2)]}}, indent=2),
    ],
)
def test_spans_out_of_elasticsearch_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spans.json"
    path.write_text(text)
    with open_store(str(path)) as reader:
        found = [one.row() for request in reader.iter_otlp(EVER, []) for one in spans_of(request)]
    assert [(one.start_unix_nano, one.kind, one.service) for one in found] == [
        (1000, "SERVER", "files"),
        (2000, "SERVER", "files"),
    ]
    assert found[0].attributes == {"http.route": "/"}
    assert found[0].resource["host.name"] == "a"


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({}, "an object without resourceSpans"),
        ({"spanz": [1], "total": 3}, "an object without resourceSpans: its keys are 'spanz', 'total'"),
        ({"result": {"found": 1}}, "an object without resourceSpans: its keys are 'found'"),
        ({"trace": {"id": "1"}, "@timestamp": "t"}, "a document of Elastic APM"),
        ({"trace_id": "1", "span_id": "2", "name": "x"}, "a span as Elasticsearch keeps it"),
        ({"TraceId": "1", "SpanId": "2"}, "a Collector's exporter keeps it in Elasticsearch"),
        ([{"traceId": "1", "id": "2", "localEndpoint": {}}], "a span of Zipkin's JSON"),
        ([[{"traceId": "1", "id": "2"}]], "a span of Zipkin's JSON"),
        ({"name": "x", "context": {"trace_id": "0x1"}, "start_time": "t"}, "console exporter prints it"),
        ({"traceId": "1", "spanId": "2"}, "a span of OTLP outside of resourceSpans"),
        ({"traceEvents": []}, "a trace of Chrome's"),
        ([], "a list of no spans"),
        (3, "no JSON object"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_another_form_is_an_error_that_names_it(tmp_path: Path, document: Any, named: str, indent: int | None) -> None:
    """On a line or over many, and never an empty request."""
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(document, indent=indent) + "\n")
    with pytest.raises(StoreError, match=re.escape(named)) as caught:
        read(path)
    assert "holds no OTLP spans: " in str(caught.value)


def test_lines_of_another_form_beside_spans_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(encode(MESSAGES[0]) + '\n{"other": 1}\n')
    why = "it is an object without resourceSpans: its keys are 'other'"
    assert read(path) == ([1], [f"1 of 2 lines of spans.jsonl are not OTLP JSON (line 2: {why})"])


@pytest.mark.parametrize("framed", [False, True])
def test_a_file_is_read_but_for_what_cannot_be(tmp_path: Path, framed: bool) -> None:
    """Spans of 48 or 60 arrays are excluded; their neighbours stay."""
    parts = [with_deep("arrays", depth, f"file {depth}")[PROTOBUF] for depth in (48, 60)]
    data = b"".join(len(one).to_bytes(4, "big") + one for one in parts) if framed else b"".join(parts)
    (tmp_path / "spans.pb").write_bytes(data)
    done = cli("import", str(tmp_path / "spans.pb"), "--store", str(tmp_path / "copy"), "--json")
    answer = json.loads(done.stdout)
    assert (answer["accepted"], answer["complete"]) == (4, False)
    assert "2 spans of spans.pb cannot be read, and are excluded" in answer["reason"]


def test_a_span_that_is_no_text_costs_no_other_of_the_file(tmp_path: Path) -> None:
    body = with_deep("arrays", 1, "broken")[PROTOBUF].replace(b"deep", b"de\xffp")
    (tmp_path / "spans.pb").write_bytes(len(body).to_bytes(4, "big") + body)
    done = cli("services", "--store", f"file://{tmp_path / 'spans.pb'}", "--json")
    assert done.returncode == 0, done.stderr
    with open_store(f"file://{tmp_path / 'spans.pb'}") as reader:
        found = reader.trace(trace_of("broken").hex())
    assert sorted(span.name for span in found.spans) == ["after", "before"]
    assert found.reason == "1 spans of spans.pb cannot be read, and are excluded"
