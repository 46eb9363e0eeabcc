"""Verdicts, lines of code and rows of entry spans: in Python, and as patterns for DuckDB."""

from __future__ import annotations

import re
from dataclasses import replace

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stagetrace.policy.entry_span import MOST_WRITTEN, write
from stagetrace.store import SpanRow
from stagetrace.store.entries import code_pattern, is_one_of, is_whole, verdict_pattern, word_of
from stagetrace.store.rows import distinct, row, value

# --- The verdict of one objective: out of the list as it is written, in Python as in DuckDB, whatever its name is.

# As names may be: no semicolon, parenthesis or line break.
NAMES = st.one_of(
    st.sampled_from(["a", "b", "a b", "a.b", "breach: a", "good", "*", "POST /predict within 50ms", "é漢\U0001f600"]),
    st.text(st.characters(exclude_characters=";()", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1),
)
WORDS = st.sampled_from(["good", "breach", "excluded"])
LISTED = st.lists(
    st.tuples(WORDS, NAMES, st.just("99% over 28d")), min_size=1, max_size=5, unique_by=lambda one: one[1]
)
CONNECTION = duckdb.connect()


@given(LISTED, NAMES)
def test_each_listed_objective_has_its_verdict_and_no_other(listed: list[tuple[str, str, str]], other: str) -> None:
    text = write(listed)
    expected = {name: word for word, name, _ in listed}
    for name in (*expected, other):
        word = expected.get(name)
        assert word_of(name, None, "good", text) == word
        for breached in (False, True):
            found = verdict_pattern(name, breached=breached)
            wanted = word == "breach" if breached else word is not None
            assert bool(re.search(found, text)) is wanted
            assert CONNECTION.execute("SELECT regexp_matches($1, $2)", [text, found]).fetchone() == (wanted,)


def test_the_span_says_it_of_the_objective_that_it_shows_and_of_those_beyond_the_list_nobody() -> None:
    assert word_of("predict", "predict", "breach", None) == "breach"
    assert word_of("predict", "other", "breach", None) is None
    text = write([("good", f"r{number}", "99% over 28d") for number in range(MOST_WRITTEN + 1)])
    assert word_of(f"r{MOST_WRITTEN - 1}", None, None, text) == "good"
    assert word_of(f"r{MOST_WRITTEN}", None, None, text) is None


# --- Which lines of code a text selects, in Python as in DuckDB.

CODES = (
    "app.py:4 in predict",
    "app.py:41 in Model.predict",
    "src/app.py:41 in <lambda>",
    "app_py:41 in predict",
    "a (b).py:1 in f[0]+",
    "app.py:41",
    "Ä.py:4 in x'y\\",
    "",
)
SELECTED = {
    ("app.py",): {0, 1, 5},
    ("app.py:4",): {0},
    ("app.py:41",): {1, 5},
    ("app.py:41 in Model.predict",): {1},
    ("app.py:4 in",): set(),
    ("*app.py:41",): {1, 2, 5},
    ("*predict",): {0, 1, 3},
    ("app.py:4*",): {0, 1, 5},
    ("* in <lambda>", "app.py:4"): {0, 2},
    ("a (b).py",): {4},
    ("a (b).py:1 in f[0]+",): {4},
    ("Ä.py", "Ä.py:4 in x'y\\"): {6},
    ("*",): set(range(8)),
    ("pp.py",): set(),
}


@pytest.mark.parametrize("texts", SELECTED)
def test_a_text_selects_the_same_codes_everywhere(texts: tuple[str, ...]) -> None:
    expected = {CODES[number] for number in SELECTED[texts]}
    assert {code for code in CODES if is_one_of(code, texts)} == expected
    assert not is_one_of(None, texts)
    query = "SELECT code FROM (SELECT unnest($1) AS code) WHERE regexp_full_match(code, $2)"
    assert {code for (code,) in duckdb.execute(query, [list(CODES), code_pattern(texts)]).fetchall()} == expected


def test_a_whole_code_selects_itself_alone() -> None:
    for code in CODES:
        if is_whole(code):
            assert [one for one in CODES if is_one_of(one, (code,))] == [code]
    assert [code for code in CODES if not is_whole(code)] == ["app.py:41", ""]
    assert not is_whole("app.py:4* in predict")


# --- OTLP spans as rows.

ROW = SpanRow("ab" * 16, "cd" * 8, None, "name", "svc", "SERVER", 1, 2, {})


def test_every_kind_of_value_has_its_python_form() -> None:
    cases: list[tuple[AnyValue, object]] = [
        (AnyValue(string_value="a"), "a"),
        (AnyValue(bool_value=False), False),
        (AnyValue(int_value=2**62), 2**62),
        (AnyValue(double_value=0.5), 0.5),
        (AnyValue(bytes_value=b"\x00"), b"\x00"),
        (AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()])), [1, None]),
        (AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(int_value=1))])), {"k": 1}),
        (AnyValue(), None),
    ]
    assert [value(given) for given, _ in cases] == [expected for _, expected in cases]
    covered = {given.WhichOneof("value") for given, _ in cases} - {None}
    # Of the newer kinds, the index into a table of strings occurs in profiles alone.
    assert covered == {field.name for field in AnyValue.DESCRIPTOR.oneofs_by_name["value"].fields} - {
        "string_value_strindex"
    }


def test_kinds_and_statuses_are_words() -> None:
    words = [row("svc", Span(kind=number)).kind for number in Span.SpanKind.values()]
    assert words == ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
    statuses = [row("svc", Span(status=Status(code=number))).status for number in Status.StatusCode.values()]
    assert statuses == ["UNSET", "OK", "ERROR"]


def test_a_parent_of_zero_bytes_is_no_parent() -> None:
    assert row("svc", Span(parent_span_id=bytes(8))).parent_span_id is None
    assert row("svc", Span(parent_span_id=b"\x10" + bytes(7))).parent_span_id == "1000000000000000"


def test_of_two_copies_the_one_with_the_verdict_stays() -> None:
    judged = replace(ROW, attributes={"sla.breached": True})
    assert distinct([ROW, judged]) == distinct([judged, ROW]) == [judged]


def test_a_client_and_a_server_that_share_an_id_are_two_spans() -> None:
    client = replace(ROW, kind="CLIENT", service="caller", start_unix_nano=0)
    assert distinct([ROW, client, ROW]) == [client, ROW]


def test_a_span_that_only_follows_its_parent_is_marked() -> None:
    """As Jaeger translates OpenTracing's FOLLOWS_FROM: a parent, and a link to it that says what it is."""
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=b"p" * 8)
    assert row("svc", span).follows is False
    link = span.links.add(trace_id=b"t" * 16, span_id=b"p" * 8)
    assert row("svc", span).follows is False
    link.attributes.append(KeyValue(key="opentracing.ref_type", value=AnyValue(string_value="follows_from")))
    assert row("svc", span).follows is True
    link.span_id = b"o" * 8
    assert row("svc", span).follows is False
