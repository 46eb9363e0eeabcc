"""One trace as JSON: what `trace --json` prints, and the page gives. Pure."""

from __future__ import annotations

from typing import Any

from stagetrace.analysis.critical_path import on_path
from stagetrace.output.keys import completeness, keys_of
from stagetrace.store.base import SpanRow, Trace
from stagetrace.store.rows import json_value


def as_json(trace: Trace) -> dict[str, Any]:
    """Return a trace as an object of JSON."""
    critical = on_path(trace.spans)
    return {
        "trace_id": trace.trace_id,
        **completeness(trace.reason),
        "spans": [_span_json(span, place in critical) for place, span in enumerate(trace.spans)],
    }


def _span_json(span: SpanRow, is_critical: bool) -> dict[str, Any]:
    attributes = {key: json_value(value) for key, value in span.attributes.items()}
    changed = {"duration_ms": span.duration_ns / 1e6, "is_critical": is_critical, "attributes": attributes}
    return keys_of(span, "resource", "follows", "events", "links", **changed)
