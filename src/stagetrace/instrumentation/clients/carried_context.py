"""The trace context that the headers of a call carry before we add ours."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.recording.record import RequestRecord


def carries_other(headers: Mapping[str, str], record: RequestRecord) -> bool:
    """Return whether headers, found by lower-case names, carry a context that is not the request's own.

    Its own is that of its entry span or of one of its stages: the service has injected the current context by hand.
    """
    from opentelemetry import propagate

    textmap = propagate.get_global_textmap()
    return any(name in headers for name in context_fields(textmap)) and not _is_own(textmap, headers, record)


@functools.lru_cache(maxsize=4)
def context_fields(textmap: Any) -> frozenset[str]:
    """Return the names, in lower case, of the headers in which a propagator writes the context of a span."""
    return frozenset(field.lower() for field in textmap.fields) - {"baggage"}


def _is_own(textmap: Any, headers: Mapping[str, str], record: RequestRecord) -> bool:
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span

    carried = get_current_span(textmap.extract(headers, Context())).get_span_context()
    entry = record.entry
    if entry is None or carried.trace_id != entry.trace_id:
        return False
    stages = (one.context for one in record.so_far())
    return carried.span_id in {entry.span_id, *(one.span_id for one in stages if one is not None)}
