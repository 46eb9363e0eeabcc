"""Jaeger's own JSON as a store: what its UI downloads, older forms of it, and what is broken."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from backend.running import run_up
from backends import run_jaeger
from cli.running import cli
from conftest import need
from stagetrace.errors import StoreError
from stagetrace.store import Selection, open_store
from stagetrace.store.file.jaeger_json import read
from stagetrace.store.rows import row, spans_of
from store import spans as made
from store.feed import export, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stagetrace.store import SpanRow

EVER: Final = Selection(0, 2**63 - 1)
US: Final = 1_772_366_400_123_456
TRACE: Final = "9bfe8376688e9116d9cbae28c0aa2db6"


def tag(key: str, kind: str, value: Any) -> dict[str, Any]:
    return {"key": key, "type": kind, "value": value}


def tags(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return tags of the kinds that their values have."""
    kinds = {str: "string", bool: "bool", int: "int64", float: "float64"}
    return [tag(key, kinds[type(value)], value) for key, value in values.items()]


VERDICT: Final = {
    "span.kind": "server",
    "http.route": "/predict",
    "http.response.status_code": 200,
    "sla.breached": True,
    "ml.stage.inference.ms": 90.0,
    "list": "[1,2]",
    "otel.scope.name": "shop",
    "otel.scope.version": "1.2",
    "otel.status_code": "ERROR",
    "otel.status_description": "too late",
    "w3c.tracestate": "a=b",
}


def span(number: str, name: str, parent: str | None, start: int, took: int, *tags: Any, **rest: Any) -> dict[str, Any]:
    """Return a span as Jaeger's UI has it."""
    references = [] if parent is None else [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": parent}]
    return {
        "traceID": TRACE,
        "spanID": number,
        "operationName": name,
        "references": references,
        "startTime": US + start,
        "duration": took,
        "tags": [*tags, tag("internal.span.format", "string", "otlp")],
        "logs": [],
        "processID": "p1",
        "warnings": None,
        **rest,
    }


def trace() -> dict[str, Any]:
    """Return a trace: an entry span with a verdict, its stage, a call of another service, and what that did."""
    error = {"key": "event", "type": "string", "value": "exception"}
    logs = [{"timestamp": US + 700, "fields": [error, tag("exception.type", "string", "OSError")]}]
    more = {"logs": logs, "warnings": ["clock skew adjustment disabled"], "flags": 1}
    odd = [
        tag("sla.threshold_ms", "float64", 50),
        tag("big", "int64", "9007199254740993"),
        tag("blob", "binary", "AP8="),
    ]
    other = {"refType": "FOLLOWS_FROM", "traceID": "ab" * 16, "spanID": "cd" * 8}
    return {
        "traceID": TRACE,
        "spans": [
            span("9b321d76f92134d2", "POST /predict", None, 0, 90_000, *tags(VERDICT), *odd),
            span("1", "inference", "9b321d76f92134d2", 0, 90_000, tag("ml.stage", "string", "inference")),
            span("2", "GET", "1", 600, 50_000, *tags({"span.kind": "client", "error": True}), **more),
            {
                **span("3", "GET /features", "2", 900, 40_000, tag("span.kind", "string", "server"), processID="p2"),
                "references": [other, {"refType": "CHILD_OF", "traceID": TRACE, "spanID": "2"}],
            },
        ],
        "processes": {
            "p1": {"serviceName": "shop", "tags": [tag("region", "string", "eu"), tag("pid", "int64", 7)]},
            "p2": {"serviceName": "features", "tags": []},
        },
        "warnings": None,
    }


def rows(path: Path) -> dict[str, SpanRow]:
    with open_store(str(path)) as reader:
        found = [one.row() for message in reader.iter_otlp(EVER, []) for one in spans_of(message)]
    return {one.span_id.lstrip("0"): one for one in found}


def forms() -> dict[str, str]:
    """Return one trace in each form in which it is handed about."""
    one = trace()
    older = json.loads(json.dumps(one))
    for given in older["spans"]:
        references = given.pop("references")
        given["parentSpanID"] = next((ref["spanID"] for ref in references if ref["refType"] == "CHILD_OF"), "")
        given["references"] = [ref for ref in references if ref["refType"] != "CHILD_OF"]
        given["process"] = older["processes"][given.pop("processID")]
    del older["processes"]
    whole = {"data": [one], "total": 0, "limit": 0, "offset": 0, "errors": None}
    return {
        "download": json.dumps(whole, indent=2),
        "api": json.dumps(whole),
        "trace": json.dumps(one, indent=4),
        "list": json.dumps([one]),
        "lines": "".join(json.dumps({**one, "spans": [given]}) + "\n" for given in one["spans"]),
        "older": json.dumps({"data": [older]}),
    }


@pytest.mark.parametrize("form", forms())
def test_each_form_is_a_store(tmp_path: Path, form: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(forms()[form])
    found = rows(path)
    entry, stage, call, back = (found[one] for one in ("9b321d76f92134d2", "1", "2", "3"))
    assert (entry.trace_id, entry.parent_span_id, entry.service, entry.kind) == (TRACE, None, "shop", "SERVER")
    assert (entry.start_unix_nano, entry.duration_ns) == (US * 1000, 90_000_000)
    assert entry.resource == {"service.name": "shop", "region": "eu", "pid": 7}
    assert entry.status == call.status == "ERROR"
    assert entry.attributes == {
        "http.route": "/predict",
        "http.response.status_code": 200,
        "sla.breached": True,
        "sla.threshold_ms": 50.0,
        "ml.stage.inference.ms": 90.0,
        "big": 9_007_199_254_740_993,
        "blob": b"\x00\xff",
        "list": "[1,2]",
    }
    assert (stage.parent_span_id, stage.kind) == ("9b321d76f92134d2", "UNSPECIFIED")
    assert stage.attributes == {"ml.stage": "inference"}
    assert (call.parent_span_id, call.kind) == ("0" * 15 + "1", "CLIENT")
    assert call.attributes == {"@jaeger@warnings": ["clock skew adjustment disabled"]}
    assert (back.service, back.parent_span_id) == ("features", "0" * 15 + "2")
    assert back.resource == {"service.name": "features"}


def test_what_no_row_shows_is_there_too() -> None:
    """Scope, status text, trace state, events, links, flags."""
    request = read(trace()).request
    shop, features = request.resource_spans
    scope = shop.scope_spans[0].scope
    assert (scope.name, scope.version) == ("shop", "1.2")
    entry, (_, call), back = (*shop.scope_spans[0].spans, shop.scope_spans[1].spans, features.scope_spans[0].spans[0])
    assert (entry.status.message, entry.trace_state) == ("too late", "a=b")
    (event,) = call.events
    assert (event.name, event.time_unix_nano) == ("exception", (US + 700) * 1000)
    assert event.attributes[0].key == "exception.type"
    assert call.flags == 1
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in back.links] == [("ab" * 16, "cd" * 8)]


def test_the_verbs_read_it_and_import_takes_it(tmp_path: Path) -> None:
    """With the same answers of the file and of the store that it was taken into."""
    path, store = tmp_path / "trace.json", tmp_path / "store"
    path.write_text(forms()["download"])
    done = cli("import", str(path), "--store", str(store), "--json")
    assert (done.returncode, json.loads(done.stdout)["accepted"]) == (0, 4)
    for verb in (["breaches"], ["trace", TRACE], ["requests", "--segment", "region=eu"]):
        since = [] if verb[0] == "trace" else ["--since", "2026-01-01T00:00:00Z"]
        of_file, of_store = (cli(*verb, "--store", str(one), "--json", *since) for one in (path, store))
        assert of_file.returncode == of_store.returncode == 0
        assert json.loads(of_file.stdout) == json.loads(of_store.stdout)
    assert json.loads(of_file.stdout)["total"] == 1


def test_a_parent_in_another_trace_is_a_link_and_one_that_is_followed_a_parent() -> None:
    far = {"refType": "CHILD_OF", "traceID": "1", "spanID": "2"}
    followed = {"refType": "FOLLOWS_FROM", "traceID": TRACE, "spanID": "a1"}
    itself = {"refType": "CHILD_OF", "traceID": TRACE, "spanID": "7"}
    document = {**trace(), "spans": [span("7", "x", None, 0, 1, references=[far, itself, followed])]}
    (found,) = [one.span for one in spans_of(read(document).request)]
    assert found.parent_span_id.hex() == "0" * 14 + "a1"
    assert [link.trace_id.hex().lstrip("0") for link in found.links] == ["1", TRACE, TRACE]
    words = [link.attributes[0].value.string_value for link in found.links]
    assert words == ["child_of", "child_of", "follows_from"]
    assert row("svc", found).follows


BROKEN: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "id": ({"spanID": "xyz"}, "span 'xyz': its spanID is no id of up to 16 hex digits"),
    "zero": ({"spanID": "0"}, "its spanID is no id"),
    "long": ({"traceID": "1" * 33}, "its traceID is no id of up to 32 hex digits"),
    "start": ({"startTime": "noon"}, "its startTime is no number of microseconds: 'noon'"),
    "before": ({"startTime": -5}, "its startTime is no time in microseconds: -5"),
    "duration": ({"duration": 2**62}, "its end is no time: its duration is 4611686018427387904"),
    "process": ({"processID": "p9"}, "its processID is none of the trace's processes"),
    "name": ({"operationName": None}, "its operationName is no text: None"),
    "tags": ({"tags": [{"value": 1}]}, "'key'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_span_is_counted_and_its_neighbours_stay(tmp_path: Path, case: str) -> None:
    change, expected = BROKEN[case]
    document = trace()
    document["spans"][1] = {**document["spans"][1], **change}
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"data": [document]}))
    cuts: list[str] = []
    with open_store(str(path)) as reader:
        assert sum(1 for message in reader.iter_otlp(EVER, cuts) for _ in spans_of(message)) == 3
    (cut,) = cuts
    assert cut.startswith("1 spans of trace.json cannot be read (span ")
    assert expected in cut


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"data": [{"traceID": "1", "spans": 5}]}',
            "it is neither a trace of Jaeger's, with spans, nor a list of these",
        ),
        ('{"data": [{"traceID": "1", "spans": [{"traceID"', "holds no OTLP spans"),
        ('{"traceID": "1", "spans": [], "processes": [1]}', "its processes are no object"),
        ('[1, "spans"]', "it is a list of no spans"),
    ],
)
def test_what_is_no_trace_is_a_clear_error(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with open_store(str(path)) as reader, pytest.raises(StoreError, match="holds no OTLP spans") as caught:
        reader.services()
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_a_duration_below_zero_stays_one() -> None:
    """Jaeger writes it as an unsigned number."""
    for took in (-250, 2**64 - 250):
        document = {**trace(), "spans": [span("7", "x", None, 0, took)]}
        (found,) = [one.span for one in spans_of(read(document).request)]
        assert found.end_time_unix_nano - found.start_time_unix_nano == -250_000


@pytest.mark.thorough
def test_any_document_is_read_or_refused() -> None:
    """Each value in turn, and at random several, replaced by one of another type."""
    draw = random.Random(4)
    others: tuple[Any, ...] = (None, 0, -1, 1.5, True, "", "x", [], {}, [[]], 1e400, 2**70)

    def places(found: Any) -> Iterator[tuple[Any, Any]]:
        for key in list(found) if isinstance(found, dict) else range(len(found)):
            yield found, key
            if isinstance(found[key], (dict, list)):
                yield from places(found[key])

    refused = 0
    for _ in range(1500):
        document = {"data": [trace()]}
        for _ in range(draw.randrange(1, 4)):
            holder, key = draw.choice(list(places(document)))
            holder[key] = draw.choice(others)
        try:
            found = read(document)
        except ValueError:
            refused += 1
        else:
            assert found.rejected + sum(1 for _ in spans_of(found.request)) <= 4
    assert 0 < refused < 1500


@pytest.mark.thorough
def test_what_our_own_back_end_gives_is_a_store(tmp_path: Path) -> None:
    """Over `/api/v3/traces`, and of a whole trace the same to the nanosecond."""
    path, sent = tmp_path / "trace.json", made.ALL[:4]
    with run_up(tmp_path) as up:
        export(up.as_jaeger.otlp_grpc, sent)
        path.write_text(httpx.get(f"{up.as_jaeger.query_http}/api/v3/traces/{sent[0].trace_id}?raw_traces=true").text)
    found = rows(path)
    assert {one.span_id.lstrip("0"): (one.start, one.end) for one in sent} == {
        number: (one.start_unix_nano, one.end_unix_nano) for number, one in found.items()
    }
    assert found[sent[0].span_id.lstrip("0")].attributes == sent[0].attributes


@pytest.mark.backend
def test_what_a_real_jaeger_gives_is_what_its_store_has(tmp_path: Path) -> None:
    """`/api/traces` of its UI, and `/api/v3/traces` of its newer API: the same spans, to the microsecond."""
    need("jaeger")
    older, newer = tmp_path / "older.json", tmp_path / "newer.json"
    with run_jaeger(tmp_path, storage="memory") as jaeger:
        send(jaeger, made.ALL[:40])
        wanted = sorted({one.trace_id for one in made.ALL[:40]})
        for path, route in ((older, "/api/traces/{}?raw=true"), (newer, "/api/v3/traces/{}?raw_traces=true")):
            given = [httpx.get(jaeger.query_http + route.format(one)).text.strip() for one in wanted]
            path.write_text("".join(f"{one}\n" for one in given))
        with open_store(jaeger.url) as reader:
            theirs = {span.span_id: span for one in reader.traces(wanted) for span in one.spans}
    for path, unit in ((newer, 1), (older, 1000)):
        with open_store(str(path)) as reader:
            ours = {span.span_id: span for one in reader.traces(wanted) for span in one.spans}
        assert ours.keys() == theirs.keys()
        for span_id, one in theirs.items():
            found = ours[span_id]
            assert found.start_unix_nano == one.start_unix_nano // unit * unit
            assert abs(found.duration_ns - one.duration_ns) < unit
            assert replace(found, start_unix_nano=one.start_unix_nano, end_unix_nano=one.end_unix_nano) == one
