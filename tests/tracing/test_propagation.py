"""What our propagators read and write is what OpenTelemetry's do, whatever the headers hold."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stagetrace.tracing import propagation
from stagetrace.tracing.span_context import SpanContext, TraceFlags, TraceState

HEX = "0123456789abcdef"
PARENT = f"00-{'1' * 32}-{'2' * 16}-01"
PARENTS = st.one_of(
    st.builds(
        "{}-{}-{}-{}{}".format,
        st.sampled_from(["00", "01", "ff", "0"]),
        st.text(HEX, min_size=32, max_size=32) | st.just("0" * 32),
        st.text(HEX, min_size=16, max_size=16) | st.just("0" * 16),
        st.text(HEX, min_size=2, max_size=2),
        st.sampled_from(["", "-", "-more", " ", "x"]),
    ),
    st.text(max_size=60),
)
STATES = st.text("ab1@=, \t-_*/;é", max_size=80) | st.lists(
    st.builds("{}={}".format, st.text("abc1@_-", min_size=1, max_size=5), st.text("xyz,= ", max_size=5)), max_size=40
).map(",".join)
BAGGAGE = st.text('abc=%2C,; \t"\\é', max_size=80) | st.lists(
    st.builds(
        "{}={}{}".format, st.text("abc%20", max_size=5), st.text("xyz%C3", max_size=5), st.sampled_from(["", ";p=1"])
    ),
    max_size=200,
).map(",".join)


def theirs(carrier: dict[str, Any]) -> tuple[tuple[int, int, int, dict[str, str]] | None, dict[str, Any]]:
    context = Context()
    for propagator in (TraceContextTextMapPropagator(), W3CBaggagePropagator()):
        context = propagator.extract(carrier, context=context)
    return parts(trace.get_current_span(context).get_span_context()), dict(baggage.get_all(context))


def ours(carrier: dict[str, Any]) -> tuple[tuple[int, int, int, dict[str, str]] | None, dict[str, Any]]:
    context = propagation.extract(carrier)
    return parts(propagation.span_in(context)), dict(context.get(propagation.PAIRS, {}))


def parts(span: Any) -> tuple[int, int, int, dict[str, str]] | None:
    if span is None or not span.is_valid:
        return None
    assert span.is_remote
    return span.trace_id, span.span_id, int(span.trace_flags), dict(span.trace_state)


@given(PARENTS, STATES, BAGGAGE)
@example(PARENT, "a=1,b=2", "user=7;p, b=%20x")
@example(PARENT, "a=1,a=2", "")
@example(f"01-{'1' * 32}-{'2' * 16}-03-more", "", "a=" + "x" * 5000 + ",b=1")
@example(PARENT, ",".join(f"k{n}=v" for n in range(33)), ",".join(f"k{n}=v" for n in range(200)))
def test_headers_are_read_as_opentelemetry_reads_them(parent: str, state: str, pairs: str) -> None:
    carrier = {"traceparent": parent, "tracestate": state, "baggage": pairs}
    expected = theirs({key: [value] for key, value in carrier.items()})
    assert ours(carrier) == ours({key: [value] for key, value in carrier.items()}) == expected


def test_nothing_is_read_of_nothing() -> None:
    assert propagation.extract({}) is propagation.NO_CONTEXT
    assert propagation.extract({"traceparent": "none"}) is propagation.NO_CONTEXT


@given(
    st.integers(1, (1 << 128) - 1),
    st.integers(1, (1 << 64) - 1),
    st.integers(0, 3),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9)),
)
def test_headers_are_written_as_opentelemetry_writes_them(
    trace_id: int, span_id: int, flags: int, pairs: dict[str, str]
) -> None:
    state = {"vendor": "1"} if flags else {}
    mine = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags), trace_state=TraceState(state))
    its_state = trace.TraceState(list(state.items()))
    its = trace.SpanContext(
        trace_id, span_id, is_remote=False, trace_flags=trace.TraceFlags(flags), trace_state=its_state
    )
    context = trace.set_span_in_context(trace.NonRecordingSpan(its), Context())
    for key, value in pairs.items():
        context = baggage.set_baggage(key, value, context)
    expected: dict[str, str] = {}
    for propagator in (TraceContextTextMapPropagator(), W3CBaggagePropagator()):
        propagator.inject(expected, context)
    assert propagation.headers(mine, pairs) == expected


def test_a_context_that_is_not_valid_is_not_written() -> None:
    assert propagation.headers(SpanContext(0, 1, is_remote=False)) == {}
    assert not SpanContext(1 << 128, 1, is_remote=False).is_valid
    assert not SpanContext(1, 1 << 64, is_remote=False).is_valid
