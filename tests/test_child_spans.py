"""Instrumentations that stagetrace applies record of exceptions what stagetrace does, and texts without credentials."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode

from stagetrace.bridge.child_spans import MAX_STATEMENT, ChildSpans
from stagetrace.request import limits

SQL = "SELECT 1 -- redis://u:hunter2@h"
SHOWN = "SELECT 1 -- redis://REDACTED@h"


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made)
    return made


@pytest.fixture
def tracer() -> trace.Tracer:
    return ChildSpans().get_tracer("database")


def seen(span: Any) -> tuple[Any, ...]:
    """Return the attributes of the SDK's span, its status, the attributes of its events, and whether it has ended."""
    own = span._entry
    events = [dict(event.attributes) for event in own.events]
    return dict(own.attributes), own.status.status_code, own.status.description, events, own.end_time is not None


def test_a_span_without_a_parent_is_none(tracer: trace.Tracer) -> None:
    assert tracer.start_span("GET") is trace.INVALID_SPAN
    with tracer.start_as_current_span("GET") as span:
        assert span is trace.INVALID_SPAN


def test_what_is_set_is_redacted(provider: TracerProvider, tracer: trace.Tracer) -> None:
    with provider.get_tracer("ours").start_as_current_span("parent"):
        span = tracer.start_span("GET", kind=SpanKind.CLIENT, attributes={"db.statement": SQL, "db.rows": 3})
        span.set_attribute("db.query.text", SQL)
        span.set_attributes({"long": "x" * 10 * MAX_STATEMENT})
        span.set_status(Status(StatusCode.ERROR, "password=hunter2 is wrong"))
        span.record_exception(ValueError("hunter2"))
    assert span.get_span_context() == span._entry.get_span_context()  # type: ignore[attr-defined]
    attributes, code, description, events, _ = seen(span)
    assert attributes == {
        "db.statement": SHOWN,
        "db.rows": 3,
        "db.query.text": SHOWN,
        "long": "x" * MAX_STATEMENT + f"... (cut, of {10 * MAX_STATEMENT} characters)",
    }
    assert (code, description, events) == (StatusCode.ERROR, None, [{"exception.type": "ValueError"}])


def test_an_exception_passes_and_its_class_is_recorded(provider: TracerProvider, tracer: trace.Tracer) -> None:
    error = ValueError("hunter2")

    found: list[Any] = []

    def fail(**how: Any) -> None:
        with tracer.start_as_current_span("GET", **how) as span:
            found.append(span)
            raise error

    with provider.get_tracer("ours").start_as_current_span("parent"):
        for how in ({}, {"end_on_exit": False}):
            with pytest.raises(ValueError, match="hunter2") as raised:
                fail(**how)
            assert raised.value is error
    recorded = [{"exception.type": "ValueError"}]
    assert [seen(span) for span in found] == [({}, StatusCode.ERROR, None, recorded, ended) for ended in (True, False)]


def test_a_fault_in_recording_changes_no_exception(
    provider: TracerProvider, tracer: trace.Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("injected fault")

    monkeypatch.setattr(limits, "record", fail)
    with (
        provider.get_tracer("ours").start_as_current_span("parent"),
        pytest.raises(ValueError, match="the service's"),
        tracer.start_as_current_span("GET"),
    ):
        raise ValueError("the service's")
