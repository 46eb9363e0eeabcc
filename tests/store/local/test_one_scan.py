"""Many traces by one question, an export by one scan, a segment without the other attributes: counted, not timed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import semconv
from stagetrace.errors import StoreError
from stagetrace.output.breaches import owners_of
from stagetrace.store import stored
from stagetrace.store.rows import spans_of
from store.local.made import EVER, MS, NOW, judged, request, span

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.store.local import LocalReader, LocalStore


def bare(number: int, **rest: Any) -> list[Any]:
    """Return a breached entry span without stage totals, and its two stages."""
    verdict = {"sla__breached": True, "sla__threshold_ms": 5.0, **rest}
    start = NOW + number * MS
    return [
        span(10 * number, trace=number, start=start, **verdict),
        span(10 * number + 1, trace=number, start=start, ms=3, parent=10 * number, ml__stage="preprocess"),
        span(10 * number + 2, trace=number, start=start + 3 * MS, ms=7, parent=10 * number, ml__stage="inference"),
    ]


def questions(reader: LocalReader, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]) -> int:
    """Return how often a reader asks its database for spans or for their traces."""
    count = 0
    original = type(reader)._ask

    def counted(self: LocalReader, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        return original(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(type(reader), "_ask", counted)
        ask()
    return count


@pytest.mark.parametrize("flushed", [True, False])
def test_breaches_without_stage_totals_take_no_question_each(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, flushed: bool
) -> None:
    store.append(request(one for number in range(1, 41) for one in bare(number)))
    if flushed:
        store.flush()
    with store.reader() as reader:
        found = reader.breaches(EVER).breaches
        assert [dict(one.stages) for one in found] == [{"preprocess": 3.0, "inference": 7.0}] * 40
        assert questions(reader, monkeypatch, lambda: reader.breaches(EVER)) == 1


def test_breaches_that_waited_for_another_service_take_no_question_each(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = {semconv.SLA_BREACH_CAUSE: "downstream", semconv.SLA_BREACH_STAGE: "inference"}
    store.append(request(one for number in range(1, 41) for one in bare(number, **cause)))
    with store.reader() as reader:
        found = reader.breaches(EVER).breaches
        assert [one.reason for one in owners_of(reader, found)] == [None] * 40
        assert questions(reader, monkeypatch, lambda: owners_of(reader, found)) == 1


@pytest.mark.parametrize("breached", [None, True])
def test_an_export_is_one_scan_in_order_and_in_parts(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, breached: bool | None
) -> None:
    """Spans come by their start, in messages of bounded size; those in files, those in the log, and each once."""
    many = [judged(number, start=NOW + (number * 7919 % 1201) * MS) for number in range(1, 1201)]
    store.append(request(many[:600]))
    store.flush()
    store.append(request(many))  # half of them for the second time
    with store.reader() as reader:
        wanted, sizes, starts, ids = replace(EVER, breached=breached), list[int](), list[int](), set[bytes]()

        def read() -> None:
            for message in reader.iter_otlp(wanted, []):
                found = [one.span for one in spans_of(message)]
                sizes.append(len(found))
                starts.extend(one.start_time_unix_nano for one in found)
                ids.update(one.span_id for one in found)

        assert questions(reader, monkeypatch, read) == 0  # beside the one that the relations are
    assert sizes == [500, 500, 200]
    assert starts == sorted(one.start_time_unix_nano for one in many)
    assert len(ids) == 1200


def test_a_segment_is_read_without_the_other_attributes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that do not name it are not parsed; nor is any where the attribute has a column."""
    store.append(request([judged(number, shop="b" if number == 9 else "a", other=1) for number in (3, 9)]))
    # One has a text that is written as the name is: it is parsed, and found not to be it.
    store.append(request([judged(number, other="shop" if number == 10 else "x") for number in range(10, 60)]))
    store.flush()
    parsed: list[bytes] = []
    original = stored._texts

    def counted(rest: bytes) -> dict[str, str]:
        parsed.append(rest)
        return original(rest)

    monkeypatch.setattr(stored, "_texts", counted)
    with store.reader() as reader:
        for segments, expected, most in (({"shop": "a"}, 1, 3), ({semconv.SLA_THRESHOLD_MS: "5"}, 52, 0)):
            with reader.relations(replace(EVER, segments=segments)) as relations:
                assert list(relations.select("SELECT count(*) FROM requests")[1]) == [(expected,)]
            assert len(parsed) <= most
            parsed.clear()


@pytest.mark.thorough
def test_a_segment_of_any_kind_is_found_as_its_text(store: LocalStore) -> None:
    """Whatever holds it: a column, the span's bytes, a value of another type than its column, a key that came twice."""
    one = judged(1, http__route="/a", ml__batch__size=7, n=5, f=50.0, b=b"\x00", t=True)
    other = judged(2, http__route=7, ml__batch__size="7")
    twice = judged(3, http__route="/a")
    twice.attributes.add(key="http.route").value.string_value = "/b"
    store.append(request([one, other, twice]))
    expected = {
        ("http.route", "7"): [2], ("http.route", "/b"): [3], ("ml.batch.size", "7"): [1, 2], ("n", "5"): [1],
        ("f", "50"): [1], ("b", "AA=="): [1], ("sla.breached", "true"): [1, 2, 3], ("sla.threshold_ms", "5.0"): [],
    }  # fmt: skip
    store.flush()
    with store.reader() as reader:
        for (key, text), numbers in expected.items():
            wanted = replace(EVER, segments={key: text})
            if not numbers:
                with pytest.raises(StoreError, match="no request has the attribute"):
                    reader.relations(wanted)
                continue
            with reader.relations(wanted) as relations:
                rows = list(relations.select("SELECT span_id FROM requests ORDER BY 1")[1])
            assert [int(span_id, 16) for (span_id,) in rows] == numbers, (key, text)
