"""One trace as JSON: what `trace --json` prints, and the page gives. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagetrace.analysis.critical_path import on_path
from stagetrace.output.keys import completeness, keys_of
from stagetrace.span_attributes import json_value
from stagetrace.store.base import SpanRow, Trace, Value


def as_json(trace: Trace) -> dict[str, Any]:
    """Return a trace as an object of JSON."""
    critical = on_path(trace.spans)
    return {
        "trace_id": trace.trace_id,
        **completeness(trace.reason),
        "spans": [_span_json(span, place in critical) for place, span in enumerate(trace.spans)],
    }


def _span_json(span: SpanRow, is_critical: bool) -> dict[str, Any]:
    events = [keys_of(one, attributes=_values(one.attributes)) for one in span.events]
    changed = {"duration_ms": span.duration_ns / 1e6, "is_critical": is_critical}
    return keys_of(span, "resource", "follows", "links", **changed, attributes=_values(span.attributes), events=events)


def _values(attributes: Mapping[str, Value]) -> dict[str, Any]:
    return {key: json_value(value) for key, value in attributes.items()}
