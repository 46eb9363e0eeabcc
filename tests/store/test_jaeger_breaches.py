"""Breach search against a real Jaeger of both storages: exactly what was sent and broken, none missing, none extra."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from opentelemetry.trace import SpanKind

from stagetrace import semconv
from stagetrace.store import Selection
from stagetrace.store.base import host_and_port
from stagetrace.store.jaeger.client import JaegerClient
from stagetrace.store.jaeger.reader import JaegerReader
from store.feed import MS, Made, entry, new_trace_id, recent, send

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backends import Jaeger
    from stagetrace.store import Breaches

MINUTE = 60_000 * MS


@contextmanager
def reading(jaeger: Jaeger, depth: int = 1000, max_depth: int = 10_000) -> Iterator[JaegerReader]:
    with JaegerReader(JaegerClient(*host_and_port(jaeger.url, 16685)), depth, max_depth) as reader:
        yield reader


def ids(spans: Iterable[Made]) -> list[tuple[str, str]]:
    """Return (trace id, span id) as an answer must list them: newest first."""
    return [(one.trace_id, one.span_id) for one in sorted(spans, key=lambda one: (-one.start, one.trace_id))]


def found(answer: Breaches) -> list[tuple[str, str]]:
    return [(one.trace_id, one.span_id) for one in answer.breaches]


def test_finds_every_breach_where_one_search_cannot_hold_them(storage: Jaeger) -> None:
    """900 breaches of two services among as many good and unjudged requests, read 50 traces at a time."""
    base = recent()
    spans = [
        entry(f"many-{n % 2}", base + n * 37 * MS + n, breached=(True, True, True, False, None, False)[n % 6])
        for n in range(1800)
    ]
    send(storage, spans)
    broken = [span for span in spans if span.attributes.get(semconv.SLA_BREACHED)]
    with reading(storage, depth=50) as reader:
        for service in ("many-0", "many-1"):
            answer = reader.breaches(Selection(base, base + 2 * MINUTE, service=service))
            assert found(answer) == ids(span for span in broken if span.service == service)
            assert (answer.complete, answer.reason) == (True, None)


def test_without_a_service_reads_all_services_in_one_order(storage: Jaeger) -> None:
    base = recent() - 3 * MINUTE  # when no other test has spans
    spans = [entry(f"all-{n % 3}", base + n * MS) for n in range(60)]
    send(storage, spans)
    with reading(storage, depth=7) as reader:
        answer = reader.breaches(Selection(base, base + 60 * MS))
    assert found(answer) == ids(spans)
    assert answer.complete


def test_many_breaches_in_one_microsecond_are_all_found(storage: Jaeger) -> None:
    """A window of one microsecond cannot be halved, so the search goes deeper; neighbours are not counted in."""
    base = recent() + 10_000
    crowd = [entry("crowd", base + n % 1000) for n in range(300)]
    around = [entry("crowd", base - 1), entry("crowd", base + 1000), entry("crowd", base - 1000)]
    send(storage, [*crowd, *around])
    with reading(storage, depth=40) as reader:
        answer = reader.breaches(Selection(base - MINUTE, base + MINUTE, service="crowd"))
    assert found(answer) == ids([*crowd, *around])
    assert answer.complete


def test_a_dense_millisecond_is_cut_down_to_its_microseconds(storage: Jaeger) -> None:
    base = recent()
    dense = [entry("dense", base + n * 1000) for n in range(120)]
    send(storage, dense)
    with reading(storage, depth=10, max_depth=20) as reader:
        answer = reader.breaches(Selection(base - MINUTE, base + MINUTE, service="dense"))
    assert found(answer) == ids(dense)
    assert answer.complete


def test_reports_where_one_microsecond_holds_more_than_can_be_read(storage: Jaeger) -> None:
    base = recent()
    crowd = [entry("overfull", base) for _ in range(100)]
    other = entry("overfull", base + MS)
    send(storage, [*crowd, other])
    with reading(storage, depth=20, max_depth=60) as reader:
        answer = reader.breaches(Selection(base - MINUTE, base + MINUTE, service="overfull"))
    assert not answer.complete
    assert answer.reason is not None
    assert "more than 60 traces of overfull in the microsecond from 20" in answer.reason
    assert found(answer)[0] == (other.trace_id, other.span_id)
    assert len(set(found(answer))) == len(answer.breaches)
    assert set(found(answer)) <= set(ids([*crowd, other]))


@pytest.mark.parametrize("offset", [0, 500], ids=["whole-microsecond", "between-microseconds"])
def test_window_takes_its_start_in_and_leaves_its_end_out(storage: Jaeger, offset: int) -> None:
    service = f"edges-{offset}"
    since = recent() + offset
    until = since + 2000 * MS
    inside = [entry(service, at) for at in (since, since + 1, until - 1)]
    outside = [entry(service, at) for at in (since - 1, until, until + 1)]
    send(storage, [*inside, *outside])
    with reading(storage, depth=2) as reader:
        answer = reader.breaches(Selection(since, until, service=service))
    assert found(answer) == ids(inside)
    assert answer.complete


def test_each_service_of_a_trace_answers_for_its_own_entry_span(storage: Jaeger) -> None:
    base = recent()
    front = entry("front", base)
    call = front.child("GET", base + MS, base + 70 * MS, kind=SpanKind.CLIENT)
    back = entry("back", base + 2 * MS, ms=60, trace=front.trace, parent=call.span)
    kept = entry("kept", base + 3 * MS, ms=10, breached=False, trace=front.trace, parent=call.span)
    send(storage, [front, call, back, kept])
    with reading(storage) as reader:
        window = (base - MINUTE, base + MINUTE)
        assert found(reader.breaches(Selection(*window, service="front"))) == ids([front])
        assert found(reader.breaches(Selection(*window, service="back"))) == ids([back])
        assert found(reader.breaches(Selection(*window, service="kept"))) == []


def test_two_breaches_of_one_service_in_one_trace_are_reported_by_their_own_start(storage: Jaeger) -> None:
    """A trace comes back whole, with the entry span outside the window too; that one is not in the answer."""
    base = recent()
    early = entry("twice", base)
    late = entry("twice", base + 5000 * MS, trace=early.trace, parent=early.span)
    send(storage, [early, late])
    with reading(storage) as reader:
        assert found(reader.breaches(Selection(base, base + MS, service="twice"))) == ids([early])
        assert found(reader.breaches(Selection(base + MS, base + MINUTE, service="twice"))) == ids([late])
        assert found(reader.breaches(Selection(base, base + MINUTE, service="twice"))) == ids([early, late])


def test_a_span_delivered_twice_counts_once(storage: Jaeger) -> None:
    """Also where another exporter of the same process sent the span without its verdict."""
    base = recent()
    repeated = [entry("again", base + n * MS) for n in range(5)]
    bare = [entry("again", one.start, breached=None, trace=one.trace, span=one.span) for one in repeated[:2]]
    send(storage, [*bare, *repeated])
    send(storage, repeated)
    with reading(storage) as reader:
        answer = reader.breaches(Selection(base, base + MINUTE, service="again"))
    assert found(answer) == ids(repeated)


def test_sums_the_stage_spans_where_the_entry_span_has_no_totals(storage: Jaeger) -> None:
    """A stage that comes twice is summed; a span below a stage, or delivered twice, adds nothing."""
    base = recent()
    verdict = {semconv.SLA_BREACHED: True}
    made = Made("POST /predict", "sums", base, base + 60 * MS, attributes=verdict)
    first = made.stage("inference", base + 10 * MS, base + 30 * MS)
    stages = [
        made.stage("postprocess", base + 55 * MS, base + 60 * MS),
        made.stage("preprocess", base, base + 10 * MS),
        first,
        made.stage("preprocess", base + 30 * MS, base + 35 * MS),
        made.stage("inference", base + 35 * MS, base + 55 * MS),
        first.child("kernel", base + 11 * MS, base + 12 * MS),
    ]
    send(storage, [made, *stages])
    send(storage, stages)
    with reading(storage) as reader:
        (one,) = reader.breaches(Selection(base, base + MINUTE, service="sums")).breaches
    assert list(one.stages.items()) == [("preprocess", 15.0), ("inference", 40.0), ("postprocess", 5.0)]
    assert one.route is None
    assert one.threshold_ms is None


def test_a_trace_comes_back_whole_with_each_span_once(storage: Jaeger) -> None:
    base = recent() + 7
    made = entry("whole", base, attributes={"text": "é", "count": 3, "ratio": 0.5, "flag": False, "list": [1, 2]})
    stage = made.stage("inference", base, base + 80 * MS)
    other = entry("whole-other", base + MS, trace=made.trace, parent=new_trace_id() & (2**64 - 1), breached=None)
    send(storage, [made, stage, other])
    send(storage, [stage])
    with reading(storage) as reader:
        trace = reader.trace(made.trace_id)
    rows = {row.span_id: row for row in trace.spans}
    assert trace.complete
    assert len(trace.spans) == len(rows)
    assert sorted(rows) == sorted(one.span_id for one in (made, stage, other))
    top, below, stray = rows[made.span_id], rows[stage.span_id], rows[other.span_id]
    assert (top.parent_span_id, top.kind, top.service, top.status) == (None, "SERVER", "whole", "UNSET")
    assert (top.start_unix_nano, top.end_unix_nano) == (made.start, made.end)
    read = dict(top.attributes)
    assert read.pop("list") in ([1, 2], "[1,2]")  # badger keeps lists as text
    assert read == {key: value for key, value in made.attributes.items() if key != "list"}
    assert (below.parent_span_id, below.kind) == (made.span_id, "INTERNAL")
    assert stray.parent_span_id == f"{other.parent:016x}"


def test_a_trace_larger_than_grpcs_usual_message_is_read(storage: Jaeger) -> None:
    base = recent()
    made = entry("large", base)
    # Badger puts each value into a key, and keys end at 65,000 bytes; a longer value would lose the span.
    details = [made.child("detail", base, base + MS, attributes={"text": "x" * 50_000}) for _ in range(120)]
    send(storage, [made, *details[:60]])
    send(storage, details[60:])  # Jaeger itself takes in no more than 4 MiB at once
    with reading(storage) as reader:
        assert found(reader.breaches(Selection(base, base + MS, service="large"))) == ids([made])
        assert len(reader.trace(made.trace_id).spans) == 121
