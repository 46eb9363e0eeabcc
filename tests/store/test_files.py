"""Files of OTLP in every framing, whole, cut off and broken: what can be read is, and what cannot is said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from messages import add_scope, leaves
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.json import decode, encode
from stagetrace.store import Selection, open_store
from stagetrace.store.file import otlp
from stagetrace.store.file.otlp import complete_lines

if TYPE_CHECKING:
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
    starts = [span.start_time_unix_nano for request in otlp.read(path, cuts) for _, _, span in leaves(request)]
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
        decode(line)


def test_ids_are_hex_of_their_length() -> None:
    given = json.loads(encode(MESSAGES[0]))
    span = given["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (span["traceId"], span["spanId"]) == ("0" * 31 + "1", "0" * 15 + "1")
    for wrong in ("zz" * 16, "00" * 15, "AAAAAAAAAAAAAAAAAAAAAQ==", "0" * 33):
        span["traceId"] = wrong
        with pytest.raises(ValueError, match=r"hex"):
            decode(json.dumps(given))


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
