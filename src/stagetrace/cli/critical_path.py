"""Which spans a trace's end waited for: making any of them faster makes the whole faster. Pure: rows in, rows out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagetrace.store.base import SpanRow


def critical_path(spans: Sequence[SpanRow]) -> set[int]:
    """Return the places in `spans` of those on the critical path, of each tree where parents are missing.

    From the end of a span back: the child that ended last was waited for, before its start the one that ended last
    before that, and so on; within each child alike. What a child does after its parent's end nobody waited for.
    """
    ids = {span.span_id for span in spans}
    children: dict[str, list[int]] = {}
    for place, span in sorted(enumerate(spans), key=lambda pair: (-pair[1].end_unix_nano, pair[1].start_unix_nano)):
        if span.parent_span_id is not None and span.parent_span_id in ids:
            children.setdefault(span.parent_span_id, []).append(place)
    found: set[int] = set()
    pending = [(place, span.end_unix_nano) for place, span in enumerate(spans) if span.parent_span_id not in ids]
    while pending:
        place, limit = pending.pop()
        if place in found:
            continue
        found.add(place)
        start, waited_until = spans[place].start_unix_nano, limit
        for child in children.get(spans[place].span_id, ()):
            begin, end = spans[child].start_unix_nano, min(spans[child].end_unix_nano, limit)
            if start < end <= waited_until and begin < end:
                pending.append((child, end))
                waited_until = begin
    return found
