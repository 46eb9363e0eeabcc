"""The scope of our spans, and the contexts of spans below others."""

from __future__ import annotations

import random

import stagetrace
from stagetrace.tracing.span import Scope
from stagetrace.tracing.span_context import SAMPLED, SpanContext, TraceFlags

SCOPE = Scope("stagetrace", stagetrace.__version__)


def sampled(context: SpanContext) -> SpanContext:
    """Return the context with its sampled flag set."""
    flags = TraceFlags(context.trace_flags | SAMPLED)
    return SpanContext(context.trace_id, context.span_id, context.is_remote, flags, context.trace_state)


def child(parent: SpanContext) -> SpanContext:
    """Return the context of a new span under another one of this process."""
    span_id = random.getrandbits(64) or 1
    return SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)  # noqa: FBT003
