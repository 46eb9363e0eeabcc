"""What a URL, and scripts, name the spans of a trace by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.store.base import SERVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagetrace.store.base import SpanRow


def key_of(span: SpanRow) -> str:
    """Return what a URL names a span by: client and server of one call may share an id (Zipkin)."""
    return f"{span.span_id}-{span.kind.lower()}" if span.kind == SERVER else span.span_id


def spans_by_key(spans: Sequence[SpanRow]) -> dict[str, SpanRow]:
    """Return the spans by what a URL names them by: with the kind, or by id alone."""
    found: dict[str, SpanRow] = {}
    for span in spans:
        found.setdefault(span.span_id, span)
    return found | {key_of(span): span for span in spans}
