"""What the handlers of the `semantics` services do with the current span, and with the trace that they are in."""

import os
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

if os.environ.get("RESPONSE_PROPAGATOR"):
    from opentelemetry.instrumentation.propagators import TraceResponsePropagator, set_global_response_propagator

    set_global_response_propagator(TraceResponsePropagator())


def user() -> dict[str, Any]:
    span: Any = trace.get_current_span()
    span.set_attribute("text", "ü")
    span.set_attribute("bad", object())
    span.set_attributes({"list": ["a", "b"], "number": 7, "float": 0.5, "flag": True})
    span.add_event("an event", {"k": "v"}, timestamp=1_000_000_000)
    span.add_link(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)), {"of": "link"})
    span.set_status(Status(StatusCode.ERROR, "says the user"))
    span.update_name("a name of the user's")
    return {"name": span.name, "recording": span.is_recording(), "seen": span.attributes["text"]}


def user_exception() -> dict[str, bool]:
    try:
        {}["noticed"]
    except KeyError as error:
        trace.get_current_span().record_exception(error, {"more": 1})
    return {"ok": True}


def override(**more: str) -> dict[str, bool]:
    trace.get_current_span().set_attributes({"http.route": "/mine", "url.path": "/mine", "server.port": 1, **more})
    return {"ok": True}


def child() -> dict[str, bool]:
    with trace.get_tracer("app").start_as_current_span(
        "child", attributes={"k": "v"}, links=[Link(SpanContext(3, 4, is_remote=True))]
    ):
        trace.get_current_span().add_event("inside")
    return {"ok": True}


def context() -> dict[str, Any]:
    here = trace.get_current_span().get_span_context()
    found = {"state": dict(here.trace_state), "baggage": dict(baggage.get_all())}
    return {"sampled": here.trace_flags.sampled, **found}


def note_handled(error: Exception) -> dict[str, str]:
    trace.get_current_span().set_attribute("seen by its handler", str(error))
    return {"handled": str(error)}


def add_headers(headers: Any) -> None:
    headers["x-answer"] = "shown"
    headers["x-answer-token"] = "secret of the answer"
