"""The unseen time of each stage of a trace: waiting that no span beneath it shows, and in which its thread had no CPU.

What is known of it was measured by length, not by place: it is drawn at the end of the times that no span covers.
Spans are as `span_tree` describes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.span_tree import is_spread
from stagetrace.columns import names_of
from stagetrace.sla import cause
from stagetrace.span_attributes import number, text

_QUEUES: Final = {"socket": cause.SOCKET_WAIT, "batch": cause.BATCH_WAIT}
_NETWORK: Final = {semconv.NETWORK_RECEIVE: cause.SLOW_UPLOAD, semconv.NETWORK_SEND: cause.SLOW_DOWNLOAD}
_WAITS: Final = frozenset(word for word, one in cause.CAUSES.items() if one.is_wait)
_BLOCKED: Final = "blocked by a lock, the GIL, a device, or input or output"


class Unseen(NamedTuple):
    """What is not seen of one stage span: how long for what, and where it is drawn, in ns on the span's own clock."""

    waits: tuple[tuple[str, int], ...]
    intervals: tuple[tuple[int, int], ...]
    at_most: bool = False  # the wait is of the whole request, and most of it lies in this stage


def unseen_times(spans: Sequence[Any]) -> dict[int, Unseen]:
    """Return place -> unseen time, of the stage spans that have some."""
    below: dict[str, list[Any]] = {}
    for span in spans:
        if span.parent_span_id is not None:
            below.setdefault(span.parent_span_id, []).append(span)
    entries = {span.span_id: span for span in spans if span.kind == "SERVER"}
    found: dict[int, Unseen] = {}
    for place, span in enumerate(spans):
        stage = text(span.attributes, semconv.ML_STAGE)
        if stage is None or span.duration_ns <= 0:
            continue
        children = [child for child in below.get(span.span_id, ()) if child is not span]
        free = _free(span, children)
        left = sum(end - start for start, end in free) - sum(map(_spread_ns, children))
        waits, at_most = _waits(span, stage, entries.get(span.parent_span_id), max(left, 0))
        if waits:
            drawn = _drawn(free, sum(took for _, took in waits))
            found[place] = Unseen(waits, drawn, at_most)
    return found


def _waits(span: Any, stage: str, entry: Any, left: int) -> tuple[tuple[tuple[str, int], ...], bool]:
    """Return what a stage waited for, at most `left` ns in all, and whether that is an upper bound."""
    attributes = span.attributes
    if stage == semconv.QUEUE:
        reason = text(attributes, semconv.QUEUE_REASON) or ""
        return _some((cause.PHRASES[_QUEUES.get(reason, cause.POOL_WAIT)], left)), False
    if stage in _NETWORK:
        return _some((cause.PHRASES[_NETWORK[stage]], left)), False
    computed = _ns(attributes, semconv.CPU_TIME_MS)
    if computed is not None:
        rest = max(left - max(computed, _ns(attributes, semconv.DEVICE_TIME_MS) or 0), 0)
        lacked = min(_ns(attributes, semconv.CPU_WAIT_MS) or 0, rest)
        blocked = min(_ns(attributes, semconv.CPU_BLOCKED_MS) or 0, rest - lacked)
        unknown = rest - lacked - blocked
        return _some(
            (cause.PHRASES[cause.CPU_WAIT], lacked), (_BLOCKED, blocked), ("for an unknown reason", unknown)
        ), False
    return _some(_blamed(stage, entry, left)), True


def _blamed(stage: str, entry: Any, left: int) -> tuple[str, int]:
    """Return the wait that a breach is blamed on, of the stage that it is blamed on: nothing else is known of it."""
    if entry is None or text(entry.attributes, semconv.SLA_BREACH_STAGE) != stage:
        return "", 0
    word = text(entry.attributes, semconv.SLA_BREACH_CAUSE)
    if word not in _WAITS:
        return "", 0
    took = number(entry.attributes, semconv.breach_part_ms(word))
    return cause.PHRASES[word], 0 if took is None else min(round(took * 1e6), left)


def _some(*waits: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(one for one in waits if one[1] > 0)


def _ns(attributes: Any, key: str) -> int | None:
    """Return a time of an attribute in ms, by either of its names, in ns."""
    found = next((took for name in names_of(key) if (took := number(attributes, name)) is not None), None)
    return None if found is None else round(found * 1e6)


def _spread_ns(child: Any) -> int:
    """Return the time of a detail span of calls with time between them: how long they took, and not when."""
    return _ns(child.attributes, semconv.DETAIL_TIME_MS) or 0 if is_spread(child) else 0


def _free(span: Any, children: Iterable[Any]) -> list[tuple[int, int]]:
    """Return the times of a span that no child covers."""
    free, at = [], span.start_unix_nano
    for child in sorted(children, key=lambda one: one.start_unix_nano):
        if is_spread(child):
            continue
        if child.start_unix_nano > at:
            free.append((at, min(child.start_unix_nano, span.end_unix_nano)))
        at = max(at, child.end_unix_nano)
    free.append((at, span.end_unix_nano))
    return [(start, end) for start, end in free if end > start]


def _drawn(free: Sequence[tuple[int, int]], took: int) -> tuple[tuple[int, int], ...]:
    """Return a time of so many ns within `free`: of each the last part, in proportion."""
    whole = sum(end - start for start, end in free)
    return tuple((end - (end - start) * min(took, whole) // whole, end) for start, end in free)
