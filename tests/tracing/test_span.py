"""A span of ours holds, loses and counts what one of OpenTelemetry's SDK does, whatever is set on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import Status, StatusCode

from stagetrace.tracing import span as own
from stagetrace.tracing.span import Limits, Span
from stagetrace.tracing.span_context import INVALID, SpanContext

KEYS = st.text("abc", max_size=2)
SCALARS = st.one_of(
    st.text(max_size=30), st.booleans(), st.integers(), st.floats(allow_nan=False), st.binary(max_size=5), st.none()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
ATTRIBUTES = st.dictionaries(KEYS, VALUES, max_size=4)
STATUSES = st.tuples(st.sampled_from(list(StatusCode)), st.none() | st.text(max_size=5))
CALLS = st.one_of(
    st.tuples(st.just("set_attribute"), KEYS, VALUES),
    st.tuples(st.just("set_attributes"), ATTRIBUTES),
    st.tuples(st.just("add_event"), st.text(max_size=5), ATTRIBUTES, st.integers(1, 9)),
    st.tuples(st.just("update_name"), st.text(max_size=5)),
    st.tuples(st.just("add_link"), st.integers(0, 3), ATTRIBUTES),
    st.builds(lambda status: ("set_status", *status), STATUSES),
    st.tuples(st.just("end"), st.just(5)),
)
SOME = st.none() | st.integers(0, 3)
LIMITS = st.builds(Limits, SOME, SOME, SOME, SOME, SOME, SOME)
# What the SDK takes for no limit.
NONE = SpanLimits.UNSET


def theirs(limits: Limits) -> Any:
    most = [NONE if one is None else one for one in limits]
    made = SpanLimits(
        max_span_attributes=most[0],
        max_event_attributes=most[1],
        max_link_attributes=most[2],
        max_events=most[3],
        max_links=most[4],
        max_attribute_length=most[5],
        max_span_attribute_length=most[5],
    )
    return TracerProvider(span_limits=made, shutdown_on_exit=False).get_tracer("t").start_span("name")


def held(one: Any) -> tuple[Any, ...]:
    return list((one.attributes or {}).items()), one.dropped_attributes


def seen(span: Any) -> dict[str, Any]:
    """Return what can be read of a span."""
    return {
        "name": span.name,
        "attributes": list((span.attributes or {}).items()),
        "events": [
            (e.name, list((e.attributes or {}).items()), e.timestamp, e.dropped_attributes) for e in span.events
        ],
        "links": [
            (ln.context.span_id, list((ln.attributes or {}).items()), ln.dropped_attributes) for ln in span.links
        ],
        "status": (span.status.status_code.value, span.status.description or None),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "end": span.end_time,
        "recording": span.is_recording(),
    }


@given(LIMITS, st.lists(CALLS, max_size=12))
def test_a_span_does_what_the_sdks_does(limits: Limits, calls: list[Any]) -> None:
    its, mine = theirs(limits), Span("name", INVALID, limits=limits)
    for method, *args in calls:
        if method == "add_link":
            number, attributes = args
            its.add_link(trace.SpanContext(number and 7, number, is_remote=False), attributes)
            mine.add_link(SpanContext(number and 7, number, is_remote=False), attributes)
        else:
            getattr(its, method)(*args)
            getattr(mine, method)(*args)
    assert seen(mine) == seen(its)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((Status(StatusCode.ERROR, "why"),), (StatusCode.OK,)),
        ((StatusCode.OK, "no description"), (StatusCode.ERROR, "too late")),
        ((Status(StatusCode.ERROR, "one"), "ignored"), (StatusCode.UNSET,)),
    ],
)
def test_statuses_of_either_kind_are_understood(first: Any, second: Any) -> None:
    its, mine = theirs(own.NO_LIMITS), Span("name", INVALID)
    for status in (first, second):
        its.set_status(*status)
        mine.set_status(*status)
    assert seen(mine) == seen(its)
    mine.set_status(own.Status(own.StatusCode.OK))
    assert mine.status == own.Status(own.StatusCode.OK)


def test_an_exception_is_recorded_with_its_stack() -> None:
    its, mine = theirs(own.NO_LIMITS), Span("name", INVALID)
    with pytest.raises(KeyError) as raised:
        next(iter(()), None) or dict.fromkeys("y")["x"]
    for span in (its, mine):
        span.record_exception(raised.value, {"more": 1}, 7, escaped=True)
    assert seen(mine) == seen(its)


class Odd:
    """What has no text of its own is no value; what has one is that text."""

    __slots__ = ()


class Told(Odd):
    def __str__(self) -> str:
        return "told"


def test_values_of_other_classes_are_their_texts() -> None:
    its, mine = theirs(own.NO_LIMITS), Span("name", INVALID)
    for span in (its, mine):
        span.set_attribute("odd", Odd())
        span.set_attribute("told", Told())
        span.set_attribute("mapped", {1: "a", "": "b", "c": [Told(), None], Odd(): 1})
    assert seen(mine)["attributes"] == seen(its)["attributes"]


def test_a_span_is_handed_over_once_as_it_ends() -> None:
    ended: list[Span] = []
    span = Span("name", INVALID, on_end=ended.append)
    span.end(5)
    span.end(6)
    span.set_attribute("late", 1)
    assert (ended, span.end_time, dict(span.attributes)) == ([span], 5, {})
