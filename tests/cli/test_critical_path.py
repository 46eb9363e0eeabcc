"""The critical path, on literal trees: which spans the end waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.test_waterfall import span
from stagetrace.cli.critical_path import critical_path

if TYPE_CHECKING:
    from stagetrace.store import SpanRow

ENTRY = span(1, "entry", 0, 100, kind="SERVER")


def path(*spans: SpanRow) -> list[str]:
    rows = [ENTRY, *spans]
    return sorted(rows[place].name for place in critical_path(rows) if place)


def test_of_parallel_calls_the_one_that_ended_last_was_waited_for() -> None:
    assert path(span(2, "short", 10, 40, 1), span(3, "long", 10, 60, 1)) == ["long"]


def test_before_it_the_one_that_ended_before_its_start() -> None:
    """`beside` ends while `second` runs: nobody waited for it."""
    spans = span(2, "first", 0, 30, 1), span(3, "beside", 5, 50, 1), span(4, "second", 31, 90, 1)
    assert path(*spans) == ["first", "second"]


def test_within_each_span_alike() -> None:
    spans = (
        span(2, "stage", 10, 90, 1),
        span(3, "fast", 20, 30, 2),
        span(4, "slow", 20, 80, 2),
        span(5, "below fast", 21, 29, 3),
        span(6, "below slow", 21, 29, 4),
    )
    assert path(*spans) == ["below slow", "slow", "stage"]


def test_what_outlives_its_parent_was_waited_for_up_to_the_end_alone() -> None:
    """A background task goes on after the answer: within it only what ran before the answer counts."""
    spans = span(2, "task", 50, 500, 1), span(3, "early", 60, 90, 2), span(4, "late", 200, 400, 2)
    assert path(*spans) == ["early", "task"]


def test_what_begins_after_the_end_or_takes_no_time_is_not_on_it() -> None:
    assert path(span(2, "after", 100, 120, 1), span(3, "moment", 50, 50, 1), span(4, "back", 50, 40, 1)) == []


def test_the_order_in_which_spans_come_does_not_matter() -> None:
    spans = [ENTRY, span(2, "first", 0, 30, 1), span(3, "second", 30, 90, 1), span(4, "beside", 0, 20, 1)]
    names = {spans[place].name for place in critical_path(spans)}
    backwards = spans[::-1]
    assert names == {backwards[place].name for place in critical_path(backwards)} == {"entry", "first", "second"}


def test_a_circle_has_none_and_nothing_hangs() -> None:
    assert critical_path([span(1, "a", 0, 1, 2), span(2, "b", 0, 1, 1)]) == set()
