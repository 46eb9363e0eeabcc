"""What a Tempo's search may do, and what is nevertheless found: against a server of our own (`tempo.py` says why)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind

from stagetrace import semconv
from stagetrace.errors import StoreError
from stagetrace.store import Selection, open_store
from stagetrace.store.tempo import reader as tempo_reader
from stagetrace.store.tempo.address import parse
from stagetrace.store.tempo.client import TempoClient
from stagetrace.store.tempo.reader import TempoReader
from stagetrace.store.tempo.traceql import literal, query
from store.feed import MS, Made, entry, recent
from store.oracle import SELECTIONS, meant
from store.spans import AGAIN, ALL, WHOLE
from tempo import SECOND, WEEK_S, Tempo, run_tempo, victoria

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stagetrace.store import Breaches

pytestmark = pytest.mark.service


@contextmanager
def reading(tempo: Tempo, depth: int = 1000, max_depth: int = 10_000) -> Iterator[TempoReader]:
    with TempoReader(TempoClient(parse(tempo.url)), depth, max_depth) as reader:
        yield reader


def found(answer: Breaches) -> list[tuple[str, str]]:
    return [(one.trace_id, one.span_id) for one in answer.breaches]


def ids(spans: Iterable[Made]) -> list[tuple[str, str]]:
    return [(one.trace_id, one.span_id) for one in sorted(spans, key=lambda one: (-one.start, one.trace_id))]


def searches(tempo: Tempo) -> list[str]:
    return [one for one in tempo.asked if "/api/search " in one]


@settings(max_examples=40, deadline=None)
@given(
    starts=st.lists(st.integers(0, 40_000), max_size=30),
    bounds=st.tuples(st.integers(-2_000, 42_000), st.integers(-2_000, 42_000)).map(sorted),
    depth=st.integers(1, 9),
    limit=st.none() | st.integers(1, 35),
)
def test_any_search_depth_finds_the_same(starts: list[int], bounds: list[int], depth: int, limit: int | None) -> None:
    """Over 40 s with up to 30 breaches of 80 ms: what is found depends on the window alone, not on how it was cut."""
    base = recent() // SECOND * SECOND
    spans = [entry("svc", base + start * MS + 1) for start in starts]
    since, until = (base + bound * MS for bound in bounds)
    with run_tempo() as tempo:
        if spans:
            tempo.add(spans)
        with reading(tempo, depth=depth, max_depth=64) as reader:
            wanted = Selection(since, until, service="svc", limit=limit)
            if not spans:
                with pytest.raises(StoreError, match="there is no service 'svc'"):
                    reader.breaches(wanted)
                return
            answer = reader.breaches(wanted)
    inside = ids(one for one in spans if since <= one.start < until)
    assert found(answer) == inside[:limit]
    assert answer.complete == (limit is None or limit >= len(inside))
    assert (answer.tally.reason, answer.tally.requests, answer.tally.missed) == (None, len(inside), len(inside))


def test_more_traces_in_a_second_than_a_search_gives_are_said() -> None:
    base = recent() // SECOND * SECOND
    with run_tempo() as tempo:
        tempo.add([entry("svc", base + number * MS) for number in range(50)])
        with reading(tempo, depth=10, max_depth=32) as reader:
            answer = reader.breaches(Selection(base, base + SECOND, service="svc"))
    assert len(answer.breaches) == 32
    assert answer.reason is not None
    assert answer.reason.startswith("more than 32 traces in the second from 20")
    assert answer.tally.reason == f"not all requests are counted: {answer.reason}"


def test_settles_on_the_greatest_limit_that_a_server_accepts() -> None:
    base = recent() // SECOND * SECOND
    spans = [entry("svc", base + number * MS) for number in range(90)]
    with run_tempo(Tempo(max_limit=100)) as tempo:
        tempo.add(spans)
        with reading(tempo) as reader:
            answer = reader.breaches(Selection(base, base + SECOND, service="svc"))
    assert found(answer) == ids(spans)
    assert answer.complete


def test_answers_about_all_requests_are_of_the_newest_traces_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """But each breach is listed, since it is searched for."""
    monkeypatch.setattr(tempo_reader, "SAMPLE", 30)
    base = recent() // SECOND * SECOND
    spans = [entry("svc", base + number * 200 * MS, breached=number % 5 == 0) for number in range(100)]
    newest = ids(spans)[:30]
    sampled = "only the newest 30 traces are read, as Tempo returns one at a time"
    with run_tempo() as tempo:
        tempo.add(spans)
        with reading(tempo, depth=50) as reader:
            answer = reader.breaches(Selection(base, base + 60 * SECOND, service="svc"))
            cuts: list[str] = []
            exported = list(reader.iter_otlp(Selection(base, base + 60 * SECOND), cuts))
            for wanted in (Selection(base, base + 60 * SECOND), Selection(base, base + 60 * SECOND, service="svc")):
                with reader.relations(wanted) as relations:
                    assert relations.reason == sampled
                    rows = relations.select("SELECT trace_id, span_id FROM requests ORDER BY start_unix_nano DESC")[1]
                    assert list(rows) == newest
    assert (found(answer), answer.reason) == (ids(spans[::5]), None)
    assert answer.tally.reason == f"not all requests are counted: {sampled}"
    assert (answer.tally.missed, answer.tally.all_missed) == (20, True)
    assert (len(exported), cuts) == (30, [sampled])


def test_a_trace_in_several_blocks_is_found_by_each_of_its_requests() -> None:
    """Of two blocks a search shows the matches of one alone; the trace itself has them all."""
    base = recent() // SECOND * SECOND
    front = entry("front", base, ms=9_000)
    backs = [entry("back", base + n * SECOND + MS, trace=front.trace, parent=front.span) for n in range(8)]
    with run_tempo() as tempo:
        tempo.add([front, *backs, front.stage("inference", base, base + MS)], blocks=3)
        tempo.add([front, *backs])
        with reading(tempo, depth=1, max_depth=8) as reader:
            assert found(reader.breaches(Selection(base, base + 60 * SECOND))) == ids([front, *backs])
            part = Selection(base + 2 * SECOND, base + 5 * SECOND)
            assert found(reader.breaches(part)) == ids(backs[2:5])
            assert len(reader.trace(front.trace_id).spans) == 10


def test_a_time_that_is_too_wide_for_one_search_is_searched_week_by_week() -> None:
    base = recent()
    spans = [entry("svc", base - weeks * WEEK_S * SECOND) for weeks in range(5)]
    with run_tempo(Tempo(max_duration_s=WEEK_S)) as tempo:
        tempo.add(spans)
        with reading(tempo) as reader:
            answer = reader.breaches(Selection(base - 5 * WEEK_S * SECOND, base + SECOND))
            assert (found(answer), answer.complete) == (ids(spans), True)
            assert len(searches(tempo)) < 10
            ever = reader.breaches(Selection(0, 2**63 - 1, limit=2))
            assert found(ever) == ids(spans[:2])
            whole = reader.breaches(Selection(0, 2**63 - 1))
            assert reader.services() == ("svc",)
    assert found(whole) == ids(spans)
    assert whole.tally.reason is not None
    assert "nothing before 20" in whole.tally.reason
    assert whole.tally.reason.endswith(" was searched, as this Tempo searches 7 days at once")


def test_a_part_of_a_trace_is_said() -> None:
    text = "Trace exceeds maximum size of 100 bytes, a partial trace is returned"
    base = recent()
    made = entry("svc", base)
    with run_tempo(Tempo(partial=text)) as tempo:
        tempo.add([made])
        with reading(tempo) as reader:
            trace = reader.trace(made.trace_id)
            with reader.relations(Selection(base, base + 1)) as relations:
                assert relations.reason == f"Tempo reports: {text}"
    assert (trace.complete, trace.reason, len(trace.spans)) == (False, f"Tempo reports: {text}", 1)


@pytest.mark.parametrize("has_unknown", [False, True])
def test_an_unknown_trace_is_an_error_however_a_server_says_so(has_unknown: bool) -> None:
    with run_tempo(Tempo(has_unknown=has_unknown)) as tempo, reading(tempo) as reader:
        with pytest.raises(StoreError, match=f"there is no trace {'ab' * 16}\nit may still be on its way"):
            reader.trace("ab" * 16)
        assert list(reader.traces(["ab" * 16])) == []


def test_an_id_is_searched_by_its_beginning_among_the_newest_traces_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempo_reader, "NEWEST_TRACES", 5)
    base = recent()
    spans = [replace(entry("svc", base - n * 60 * SECOND), trace=n + 1) for n in range(20)]
    with run_tempo() as tempo:
        tempo.add(spans)
        with reading(tempo) as reader:
            some, none = reader.trace_ids("0" * 30), reader.trace_ids("ab")
    assert [int(one, 16) for one in some.ids] == [1, 2, 3, 4, 5]  # ids come without their leading zeros
    reason = "Tempo cannot search by a part of an id, so only the newest 5 traces were searched"
    assert (none.ids, some.reason, none.reason) == ((), reason, reason)


# What no search can say: times below a second, that there is no route, that it is no breach, whose verdict it is.
APPLIED = {"part", "edges", "earlier", "name-as-shown", "kept", "missed-by-none"}


@pytest.mark.parametrize("name", SELECTIONS)
def test_filters_are_searched_for_and_not_only_applied(name: str) -> None:
    """A search for a selection gives its traces and no other, so that a sample is one of what is meant."""
    selection = SELECTIONS[name]
    traces = {one.trace for one in meant(replace(selection, limit=None))}
    tempo = Tempo()
    tempo.add(ALL)
    given = {int(one["traceID"], 16) for one in tempo.search(query(selection), 0, 0, 1000)}
    assert given > traces if name in APPLIED else given == traces


def test_a_text_is_written_as_go_reads_it() -> None:
    assert literal('a"b\\c') == r'"a\"b\\c"'
    assert literal("é\x00\n\x7f\ud800😀") == '"é\\u0000\\u000a\\u007f\\ufffd😀"'
    keys = {"tenant": "span.tenant", "a b": 'span."a b"', 'q"\\': 'span."q\\"\\\\"'}
    for key, name in keys.items():
        assert f"({name} = " in query(replace(WHOLE, segments={key: "1"}))
    assert query(replace(WHOLE, segments={"n": "1e+20"})).count(" = 100000000000000000000.0") == 2
    for number, is_whole in {str(2**63 - 1): True, str(2**63): False, "-7": True, "007": False, "٣": False}.items():
        assert (f" = {number} " in query(replace(WHOLE, segments={"n": number}))) == is_whole
    assert query(replace(WHOLE, segments={"tags": '["a"]'})) == "{ kind = server }"  # applied to what comes back


def test_a_victoria_traces_is_read_with_its_texts() -> None:
    """It has the types of no attribute, finds a span by its end, and gives no more than 1,000 traces."""
    with run_tempo(victoria()) as tempo:
        tempo.add(ALL)
        tempo.add(AGAIN)
        with open_store(tempo.url) as reader:
            for selection in SELECTIONS.values():
                if selection.service is not None and selection.limit is None:
                    expected = meant(replace(selection, breached=True))
                    answer = reader.breaches(selection)
                    assert found(answer) == [(one.trace_id, one.span_id) for one in expected]
                    assert answer.tally.requests == len(meant(replace(selection, breached=None, causes=(), codes=())))
                    assert answer.complete
            one = next(
                one for one in reader.breaches(replace(WHOLE, service="contract-0")).breaches if one.missed == ()
            )
            assert isinstance(one.threshold_ms, float)
            assert all(isinstance(total, float) for total in one.stages.values())
            with pytest.raises(StoreError, match="no request has the attribute tennant=blue\nthey have the attributes"):
                reader.breaches(replace(WHOLE, segments={"tennant": "blue"}))


def test_a_request_that_ends_behind_the_window_is_found_by_victoria_traces_too() -> None:
    base = recent() // SECOND * SECOND
    made = entry("svc", base + 900 * MS, ms=5_000)
    other = Made("inner", "svc", base, base + MS, kind=SpanKind.INTERNAL, attributes={semconv.ML_STAGE: "x"})
    with run_tempo(victoria()) as tempo:
        tempo.add([made, other])
        with open_store(tempo.url) as reader:
            assert found(reader.breaches(Selection(base, base + SECOND))) == ids([made])
