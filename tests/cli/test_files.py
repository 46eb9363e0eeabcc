"""Export, import and prune: files that are whole or not there, and spans that come back as they were."""

from __future__ import annotations

import csv
import io
import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from answers.made import MS, NOON, Made, lines
from backend.processes import WITHIN_S, started, until
from backend.running import run_up
from cli import literal
from cli.literal import trace_id
from cli.running import COMMAND, answered, cli, environment, printed, refused, time_of
from messages import leaves
from stagetrace.otlp.decode.json import encode
from stagetrace.store import Selection, open_store

EVER = Selection(0, 2**63 - 1)
EARLIER = ("--since", "2026-01-01")  # than any span here


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    return literal.write(tmp_path)


def whole(store: str | Path) -> list[str]:
    """Return every span of a store whole, with resource and scope, in one order."""
    found = set()
    with open_store(str(store)) as reader:
        for message in reader.iter_otlp(EVER, []):
            for over, scope, span in leaves(message):
                # Which attribute comes first means nothing, and a store of columns does not keep it.
                span.attributes.sort(key=lambda item: item.key)
                under = ScopeSpans(scope=scope.scope, spans=[span], schema_url=scope.schema_url)
                alone = ResourceSpans(resource=over.resource, scope_spans=[under], schema_url=over.schema_url)
                found.add(encode(ExportTraceServiceRequest(resource_spans=[alone])))
    return sorted(found)


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".pb"])
def test_what_is_exported_is_a_store_with_the_same_spans(spans: Path, tmp_path: Path, suffix: str) -> None:
    """Also what no column knows: events, links, odd attribute values, resource and scope."""
    strange = tmp_path / "strange.jsonl"
    strange.write_text(spans.read_text() + json.dumps(_strange()) + "\n")
    target = tmp_path / f"out{suffix}"
    assert printed("export", target, "--store", strange).startswith("15 spans written to ")
    assert whole(target) == whole(strange)
    assert len(whole(target)) == 15
    for verb in ("stages", "requests", "breaches", "services"):
        assert printed(verb, "--store", target, "--json") == printed(verb, "--store", strange, "--json")


def _strange() -> dict[str, Any]:
    """Return a request with what OTLP has beside names, times and plain attributes."""
    values = [
        {"key": "bytes", "value": {"bytesValue": "AP8="}},
        {"key": "nan", "value": {"doubleValue": "NaN"}},
        {"key": "list", "value": {"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "x"}, {}]}}},
        {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"boolValue": True}}]}}},
        {"key": "nothing", "value": {}},
        {"key": "twice", "value": {"intValue": "1"}},
        {"key": "twice", "value": {"intValue": "2"}},
    ]
    span = {
        "traceId": trace_id(99),
        "spanId": "00000000000000ff",
        "traceState": "a=b",
        "flags": 769,
        "name": "",
        "kind": 5,
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "0",
        "attributes": values,
        "droppedAttributesCount": 3,
        "events": [{"timeUnixNano": "7", "name": "e", "attributes": values, "droppedAttributesCount": 1}],
        "droppedEventsCount": 2,
        "links": [{"traceId": trace_id(98), "spanId": "00000000000000fe", "traceState": "c=d", "attributes": values}],
        "droppedLinksCount": 1,
        "status": {"code": 2, "message": "bad"},
    }
    scope = {"name": "lib", "version": "1", "attributes": values, "droppedAttributesCount": 4}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": values, "droppedAttributesCount": 5},
                "scopeSpans": [{"scope": scope, "spans": [span], "schemaUrl": "s"}],
                "schemaUrl": "r",
            }
        ]
    }


def test_csv_has_every_column_and_row(spans: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    assert printed("export", target, "--store", spans).startswith("14 spans written to ")
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert len(rows) == 14
    assert json.loads(rows[0]["attributes"])["sla.objective"] == "POST /predict within 50ms"
    answer = answered("export", target, "--relation", "requests", "--store", spans)
    assert answer == {"complete": True, "file": str(target), "requests": 5, "bytes": target.stat().st_size}
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["inference_ms"] for row in rows] == ["60.0", "32.0", "16.0", "", "70.0"]


def test_only_what_is_selected_is_exported(spans: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    answer = answered("export", target, "--store", spans, "--model", "Tagger")
    assert (answer["spans"], answer["complete"]) == (3, True)
    assert answered("requests", "--store", target)["total"] == 1


def test_a_span_that_was_delivered_twice_is_in_the_parquet_once(spans: Path, tmp_path: Path) -> None:
    spans.write_text(spans.read_text() * 2)
    target = tmp_path / "out.parquet"
    assert printed("export", target, "--store", spans).startswith("14 spans written to ")
    assert answered("query", "SELECT count(*) FROM spans", "--store", target)["rows"] == [[14]]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.parquet", "spans.jsonl"]


def _reads(pid: int, path: Path) -> bool:
    """Return whether a process has the file open."""
    with suppress(OSError):  # it closes one meanwhile
        return any(one.readlink() == path for one in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_an_export_that_is_killed_or_fails_leaves_no_half_file(tmp_path: Path, suffix: str) -> None:
    """The file that was there stays as it was; what a SIGINT interrupts is cleared away."""
    source = tmp_path / "spans.jsonl"
    line = literal.LINES[0] + "\n"
    source.write_text(line * 40_000)
    target = tmp_path / f"out{suffix}"
    target.write_text("what was there")
    with started([*COMMAND, "export", str(target), "--store", str(source)], env=environment()) as process:
        # What is in order of time it writes once it has read all.
        until(
            lambda: _reads(process.pid, source) and (suffix != ".jsonl" or [*tmp_path.glob(".out*.partial")]), process
        )
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130
    assert target.read_text() == "what was there"
    assert sorted(one.name for one in tmp_path.iterdir()) == [target.name, "spans.jsonl"]
    source.write_text(line * 3 + "x" * 1000)
    target.chmod(0o600)
    done = cli("export", str(target), "--store", str(source), "--service", "nobody")
    assert done.returncode in (0, 2)
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("out.txt", " has no known form"),
        ("out", "end its name in one of .parquet .jsonl .pb .csv"),
        ("no/such/out.csv", "there is no folder "),
    ],
)
def test_a_bad_target_is_reported_before_anything_is_read(tmp_path: Path, target: str, expected: str) -> None:
    said = refused("export", tmp_path / target, "--store", "jaeger://127.0.0.1:1")
    assert expected in said
    assert len(said.splitlines()) == 2


@pytest.mark.thorough
def test_import_takes_every_form_in_and_repeating_it_changes_nothing(spans: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for suffix in (".parquet", ".pb"):
        printed("export", tmp_path / f"out{suffix}", "--store", spans)
    files = [spans, tmp_path / "out.parquet", tmp_path / "out.pb"]
    assert printed("import", files[0], "--store", store) == f"14 spans taken into {store}.\n"
    answer = answered("import", *files, "--store", f"local://{store}")
    assert answer == {"complete": True, "store": str(store), "accepted": 42, "rejected": 0}
    assert whole(store) == whole(spans)
    for verb in ("stages", "requests", "breaches", "watch", "tail"):
        assert answered(verb, "--store", store, *EARLIER) == answered(verb, "--store", spans, *EARLIER)


def test_import_names_what_it_could_not_read(spans: Path, tmp_path: Path) -> None:
    spans.write_text(spans.read_text() + "{broken\n" + literal.LINES[0][:50])
    done = cli("import", str(spans), "--store", str(tmp_path / "store"), "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["accepted"], answer["complete"]) == (0, 14, False)
    assert "2 of 7 lines of spans.jsonl are not OTLP JSON (line 6: " in answer["reason"]
    assert done.stderr.startswith("stagetrace: INCOMPLETE: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such.jsonl"], "there is no file no-such.jsonl"),
        (["{foreign}"], "holds no OTLP spans: line 1"),
        (["{spans}", "--store", "jaeger://x"], "jaeger://x is no local store"),
        (["{spans}", "--store", "/proc/nothing"], "/proc/nothing"),
    ],
)
def test_import_of_what_cannot_be_is_a_short_error(
    spans: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text("hello\nworld\n")
    given = [one.format(spans=spans, foreign=foreign) for one in arguments]
    given += [] if "--store" in given else ["--store", str(tmp_path / "store")]
    assert expected in refused("import", *given)


@pytest.mark.parametrize("command", [["prune", "--before", "1d"], ["import", "{spans}"], ["breaches"], ["services"]])
def test_an_empty_store_is_not_the_default_one(spans: Path, tmp_path: Path, command: list[str]) -> None:
    """`--store "$UNSET"` prunes nothing."""
    arguments = [one.format(spans=spans) for one in command]
    assert refused(*arguments, "--store", "", XDG_DATA_HOME=str(tmp_path)).startswith("stagetrace: --store is empty\n")
    assert not (tmp_path / "stagetrace").exists()


@pytest.mark.usefixtures("services")
def test_what_is_older_than_any_time_of_the_store_is_everything(spans: Path, tmp_path: Path) -> None:
    store = tmp_path / "data"
    printed("import", spans, "--store", store)
    assert printed("prune", "--before", "9999-12-31", "--store", store).startswith("14 spans from before ")
    with run_up(tmp_path) as up:
        printed("import", spans, "--store", up.ready["data"])
        assert printed("prune", "--before", "9999-12-31", "--store", up.ready["data"]).startswith(
            "14 spans from before "
        )


@pytest.mark.thorough
@pytest.mark.parametrize("damage", [None, b"", b"garbage"])
def test_damaged_spans_are_missing_from_answers_that_report_it(
    spans: Path, tmp_path: Path, damage: bytes | None
) -> None:
    store = tmp_path / "store"
    printed("import", spans, "--store", store)
    for path in store.rglob("*.parquet"):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
    for command in ("breaches", "stages"):
        answer = answered(command, *EARLIER, "--store", store)
        assert not answer["complete"], command
        assert "files that are missing or damaged" in answer["reason"], command
    assert answered("import", spans, "--store", store)["accepted"] == 14


def test_a_damaged_commit_is_a_short_error(spans: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    printed("import", spans, "--store", store)
    for path in store.rglob("0*1.json"):
        path.write_bytes(b"{garbage")
    for command in (["services"], ["breaches", "--each", *EARLIER], ["stages", *EARLIER], ["import", spans]):
        assert refused(*command, "--store", store).startswith("stagetrace: cannot read "), command


def test_a_folder_of_files_is_not_asked_to_become_a_store(spans: Path) -> None:
    url = refused("services", "--store", spans.parent).split()[-1]
    assert url == spans.parent.as_uri()
    assert printed("services", "--store", url)


def test_a_span_of_any_time_is_taken_in_or_refused_and_counted(tmp_path: Path) -> None:
    line = literal.request(1, 0, {"handler": 1.0}).replace(str(NOON), str(2**64 - 10**9))
    path = tmp_path / "late.jsonl"
    path.write_text(line)
    answer = answered("import", path, "--store", tmp_path / "store")
    assert answer["accepted"] + answer["rejected"] == 2


@pytest.mark.thorough
@pytest.mark.smoke
@pytest.mark.usefixtures("services")
def test_a_store_that_a_back_end_has_open_is_written_through_it(spans: Path, tmp_path: Path) -> None:
    """Whatever token and TLS it asks the network for; what is said and what is stored are as without it."""
    with run_up(tmp_path, "--token=secret", "--max-request=1KiB", "--max-in-flight=1KiB") as up:
        store = up.ready["data"]
        answer = answered("import", spans, "--store", store)
        assert answer == {"complete": True, "store": str(store), "accepted": 14, "rejected": 0}
        assert printed("import", spans, spans, "--store", store) == f"28 spans taken into {store}.\n"
        assert whole(store) == whole(spans)
        assert (tmp_path / "data" / "lock").stat().st_mode & 0o77 == 0
        first = answered("requests", "--store", store, *EARLIER)["requests"][0]
        before = time_of(first["start_unix_nano"])
        pruned = answered("prune", "--before", before, "--store", store)
        assert (pruned["removed"] > 0, pruned["before_unix_nano"]) == (True, first["start_unix_nano"])
        left = answered("query", "SELECT count(*), min(start_unix_nano) FROM spans", "--store", store, *EARLIER)
        assert left["rows"] == [[14 - pruned["removed"], first["start_unix_nano"]]]
    printed("import", spans, "--store", store)  # nobody has it any more


@pytest.mark.usefixtures("services")
def test_a_back_end_that_does_not_answer_is_an_error(spans: Path, tmp_path: Path) -> None:
    """It has the store, and its socket is gone, which something cleared away."""
    with run_up(tmp_path) as up:
        socket_path = Path((tmp_path / "data" / "lock").read_text().splitlines()[1])
        socket_path.unlink()
        said = refused("import", spans, "--store", up.ready["data"])
        assert "has ended or does not respond" in said
        assert len(said.splitlines()) == 2
    assert not socket_path.parent.exists()


def test_the_local_store_is_the_default_where_there_is_one(spans: Path, tmp_path: Path) -> None:
    home = str(tmp_path)
    said = printed("import", spans, XDG_DATA_HOME=home)
    assert said == f"14 spans taken into {tmp_path / 'stagetrace'}.\n"
    assert printed("services", XDG_DATA_HOME=home) == "shop\nweb\n"
    assert printed("services", XDG_DATA_HOME=home, STAGETRACE_STORE=str(spans)) == "shop\nweb\n"
    assert any((tmp_path / "stagetrace").iterdir())


def test_an_export_of_a_version_with_fewer_columns_is_read(spans: Path, tmp_path: Path) -> None:
    import duckdb

    whole, older = tmp_path / "whole.parquet", tmp_path / "older.parquet"
    printed("export", whole, "--store", spans)
    with duckdb.connect() as connection:
        read = connection.read_parquet(str(whole))
        read.project("* EXCLUDE (stages, url_path, sampling_probability)").write_parquet(str(older))
    question = ("query", "SELECT trace_id, stages, url_path FROM requests ORDER BY 1", "--json")
    assert printed(*question, "--store", older) == printed(*question, "--store", whole) != ""


def test_all_of_a_file_is_read_whatever_its_clock_was(tmp_path: Path) -> None:
    """Spans of 2030 in the file are no future; those in a store are behind its window's end, a day from now."""
    made = [Made(number, 1_893_456_000 * 10**9 + number * MS, within_ms=5.0) for number in range(1, 8)]
    path = lines(tmp_path / "spans.jsonl", made)
    assert len(answered("breaches", "--each", "--store", path)["breaches"]) == 7
    assert len(answered("requests", "--store", path)["requests"]) == 7
    assert answered("trace", "latest", "--store", path)["trace_id"] == f"{7:032x}"
    before = answered("breaches", "--each", "--store", path, "--until", "2030-01-01T00:00:00.004Z")
    assert len(before["breaches"]) == 3
