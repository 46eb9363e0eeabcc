"""A carrier without a server: small, plain, and of one request even if others are carried at the same time."""

from __future__ import annotations

import contextvars
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.trace import NonRecordingSpan

import stagetrace
from stagetrace import guard
from stagetrace.request.current import current, recording
from stagetrace.request.request import Request
from stagetrace.tracing.span_context import SpanContext, TraceFlags


def in_request(number: int) -> tuple[Request, dict[str, str]]:
    """Return a request and its carrier, from a context of its own."""
    entry = SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(1))
    record = Request()
    record.bind(entry, record.started)

    def carry() -> dict[str, str]:
        current.set(record)
        attach(baggage.set_baggage("tenant", "blue", trace.set_span_in_context(NonRecordingSpan(entry))))  # type: ignore[arg-type]
        return stagetrace.carry()

    return record, contextvars.Context().run(carry)


def test_a_carrier_is_a_few_short_texts() -> None:
    _, carrier = in_request(7)
    assert carrier.pop("stagetrace")
    assert carrier == {"traceparent": f"00-{7:032x}-{7:016x}-01", "baggage": "tenant=blue"}
    assert json.loads(json.dumps(carrier)) == carrier


def test_outside_of_a_request_there_is_nothing_to_carry() -> None:
    assert stagetrace.carry() == {}


@pytest.mark.parametrize("carrier", [None, {}, {"traceparent": "rubbish"}, {"stagetrace": "nobody's-7"}, {"a": "b"}])
def test_what_is_no_carrier_does_nothing(carrier: Any) -> None:
    before, failures = get_current(), dict(guard.failures)
    with stagetrace.resume(carrier):
        assert (get_current(), recording()) == (before, None)
    assert guard.failures == failures


def test_each_request_is_found_again_if_many_carry_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        carried = list(pool.map(in_request, range(1, 2001)))
    for number, (record, carrier) in enumerate(carried, 1):
        with stagetrace.resume(carrier):
            assert recording() is record
            assert trace.get_current_span().get_span_context().trace_id == number
            assert baggage.get_baggage("tenant") == "blue"
    assert recording() is None


def test_an_ended_request_is_not_gone_on_with_but_still_named() -> None:
    record, carrier = in_request(9)
    record.freeze()
    with stagetrace.resume(carrier):
        assert recording() is None
        assert trace.get_current_span().get_span_context().trace_id == 9


def test_a_carrier_keeps_no_request_alive() -> None:
    record, carrier = in_request(11)
    del record
    with stagetrace.resume(carrier):
        assert recording() is None


def test_an_exception_goes_through() -> None:
    token = attach(get_current())
    with pytest.raises(KeyError), stagetrace.resume(in_request(12)[1]):
        raise KeyError
    detach(token)
    assert recording() is None
