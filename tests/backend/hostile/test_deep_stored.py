"""A store that an older version has filled, with spans that nest too deep: each reader gives and counts what it can."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from backend.hostile.probes_bodies import DEPTHS, trace_of, with_deep
from backend.running import PROTOBUF, names_of, run_up, stored_spans
from cli.running import cli
from stagetrace.otlp.decode import request as decoder
from stagetrace.store import Selection, open_store
from stagetrace.store.jaeger import api_v3
from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message

    from backend.running import Up

pytestmark = pytest.mark.usefixtures("services")

SERVICE = "deep"
NAMES = ["after", "before", "deep"]
EVER = Selection(0, 2**63 - 1)


def _reads_as_before(kind: type[Message], data: bytes) -> bool:
    """Do as older versions did, which read spans from their own beginning."""
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return kind is not ExportTraceServiceRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a store with spans of depths that older versions have stored; each has two neighbours in its trace."""
    folder = tmp_path_factory.mktemp("older")
    with pytest.MonkeyPatch.context() as patch, LocalStore.open(folder / "data") as store:
        patch.setattr(decoder, "is_readable", _reads_as_before)
        for depth in DEPTHS[:4]:
            for where in ("span", "resource") if depth == 48 else ("span",):
                body = with_deep("arrays", depth, f"{SERVICE} {depth} {where}", where=where)[PROTOBUF]
                assert store.append(body).accepted == 3
    return folder


@pytest.fixture(scope="module")
def older(folder: Path) -> Iterator[Up]:
    with run_up(folder) as running:
        yield running


def every_trace() -> list[str]:
    names = [*(f"{SERVICE} {depth} span" for depth in DEPTHS[:4]), f"{SERVICE} 48 resource"]
    return [trace_of(name).hex() for name in names]


def test_each_trace_is_given_over_http_and_its_lost_attribute_counted(older: Up) -> None:
    for trace_id in every_trace()[:4]:
        assert names_of(older, trace_id) == NAMES
        (deep,) = [one for one in stored_spans(older, trace_id) if one["name"] == "deep"]
        assert deep["droppedAttributesCount"] == 1
    result = httpx.get(f"{older.query}/traces/{every_trace()[4]}").raise_for_status().json()["result"]
    assert result["resourceSpans"][0]["resource"]["droppedAttributesCount"] == 1


def test_a_search_over_grpc_finds_them(older: Up) -> None:
    query = api_v3.FindTracesRequest()
    query.query.service_name = f"{SERVICE} 48 span"
    query.query.start_time_max.FromNanoseconds(2**62)
    query.query.start_time_min.FromNanoseconds(0)
    query.query.search_depth = 10
    (found,) = _stream(older, api_v3.path("FindTraces"), query)
    assert sorted(_names(found)) == NAMES


def _stream(up: Up, path: str, request: Any) -> list[TracesData]:
    with grpc.insecure_channel(up.target("query_grpc_port")) as channel:
        call = channel.unary_stream(path, request_serializer=None, response_deserializer=TracesData.FromString)
        return list(call(request.SerializeToString(), timeout=60))


def _names(found: TracesData) -> list[str]:
    return [span.name for one in found.resource_spans for scope in one.scope_spans for span in scope.spans]


def test_commands_read_them_through_the_back_end(older: Up) -> None:
    with open_store(f"jaeger://{older.target('query_grpc_port')}") as reader:
        for found in reader.traces(every_trace()):
            assert sorted(span.name for span in found.spans) == NAMES
        with reader.relations(EVER) as relations:
            assert relations.connection.execute("SELECT count(*) FROM spans").fetchall() == [(15,)]
            assert relations.reason is None


@pytest.mark.parametrize("suffix", [".jsonl", ".pb", ".parquet"])
def test_an_export_is_whole_and_can_be_imported(older: Up, folder: Path, tmp_path: Path, suffix: str) -> None:
    """Of the folder, beside the process that has it open: the same reader as without one."""
    assert older.process.poll() is None
    file = tmp_path / f"spans{suffix}"
    done = cli("export", str(file), "--store", str(folder / "data"), "--since", "1970-01-01", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["spans"]) == (0, 15)
    if suffix != ".parquet":  # whose writer knows the spans as bytes alone: the count is in them
        assert answer["reason"] == "7 spans are without their attributes that nest too deep"
    done = cli("import", str(file), "--store", str(tmp_path / "copy"), "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["accepted"], answer["rejected"]) == (0, 15, 0)


@pytest.mark.parametrize("framed", [False, True])
def test_what_older_versions_exported_is_read_but_for_what_cannot_be(tmp_path: Path, framed: bool) -> None:
    """Spans of 48 arrays lose these, those of 60 are excluded; their neighbours stay."""
    parts = [with_deep("arrays", depth, f"file {depth}")[PROTOBUF] for depth in (48, 60)]
    data = b"".join(len(one).to_bytes(4, "big") + one for one in parts) if framed else b"".join(parts)
    (tmp_path / "spans.pb").write_bytes(data)
    done = cli("import", str(tmp_path / "spans.pb"), "--store", str(tmp_path / "copy"), "--json")
    answer = json.loads(done.stdout)
    assert (answer["accepted"], answer["complete"]) == (5, False)
    assert "1 spans of spans.pb cannot be read, and are excluded" in answer["reason"]


def test_a_span_that_is_no_text_costs_no_other_of_the_file(tmp_path: Path) -> None:
    body = with_deep("arrays", 1, "broken")[PROTOBUF].replace(b"deep", b"de\xffp")
    (tmp_path / "spans.pb").write_bytes(len(body).to_bytes(4, "big") + body)
    done = cli("services", "--store", f"file://{tmp_path / 'spans.pb'}", "--json")
    assert done.returncode == 0, done.stderr
    with open_store(f"file://{tmp_path / 'spans.pb'}") as reader:
        found = reader.trace(trace_of("broken").hex())
    assert sorted(span.name for span in found.spans) == ["after", "before"]
    assert found.reason == "1 spans of spans.pb cannot be read, and are excluded"
