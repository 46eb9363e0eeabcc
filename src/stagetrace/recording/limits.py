"""The longest value of an attribute: longer values are cut, and the span counts them.

Jaeger's storage refuses a whole batch for one value of about 65,000 bytes, and an endless one costs the service memory.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.trace import Link

from stagetrace import config
from stagetrace.recording.spans import FinishedSpan
from stagetrace.semconv import STAGETRACE_DROPPED_ATTRIBUTES, STAGETRACE_TRUNCATED_ATTRIBUTES

DEFAULT_LONGEST = 16_384
MAX_ATTRIBUTES = 128
_NUMBER = 8  # the length that a number or a None counts as in a list


@functools.cache
def longest() -> int:
    """Return how many characters a value may have: as OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT says, else 16,384."""
    for text in (config.SPAN_VALUE_LENGTH.read(), config.VALUE_LENGTH.read()):
        if text.isdecimal():
            return int(text)
    return DEFAULT_LONGEST


@functools.cache
def most_events() -> int:
    """Return how many events of ours a span may have, by OTEL_SPAN_EVENT_COUNT_LIMIT."""
    return SpanLimits().max_events or 0


def span_limits() -> SpanLimits:
    """Return the SDK's limits, with one character more, so that `bounded` can detect values that were cut."""
    return SpanLimits(max_attribute_length=longest() + 1, max_span_attribute_length=longest() + 1)


def cut(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """Return the attributes with values no longer than the limit, and how many values were cut."""
    limit = longest()
    shorter = {key: _short(value, limit) for key, value in attributes.items() if _size(value, limit) > limit}
    return ({**attributes, **shorter} if shorter else attributes), len(shorter)


def shorten(attributes: dict[str, Any]) -> None:
    """Cut the values that are longer than the limit, and add an attribute that counts them."""
    shorter, count = cut(attributes)
    if count:
        attributes.update(shorter)
        attributes[STAGETRACE_TRUNCATED_ATTRIBUTES] = count


def _size(value: Any, limit: int) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        size = 0
        for item in value:
            size += len(item) if isinstance(item, str | bytes) else _NUMBER
            if size > limit:
                break
        return size
    return len(str(value)) if isinstance(value, Mapping) else 0


def _short(value: Any, limit: int) -> Any:
    if isinstance(value, str | bytes):
        return value[:limit]
    if isinstance(value, Mapping):
        return str(value)[:limit]
    kept: list[Any] = []
    for item in value:
        if isinstance(item, str | bytes):
            kept.append(item[:limit])
            limit -= len(item)
        else:
            kept.append(item)
            limit -= _NUMBER
        if limit <= 0:
            break
    return kept


def bounded(span: ReadableSpan, cut_before: int = 0) -> ReadableSpan:
    """Return the span with nothing longer than the limit in it, marked if that took cutting.

    `cut_before` values, which are to stand on it too, have been cut already.
    """
    attributes, count = cut(span.attributes or {})
    events, links = [], []
    for event in span.events:
        shorter, more = cut(event.attributes or {})
        events.append(Event(event.name, _like(event.attributes, shorter), event.timestamp) if more else event)
        count += more
    for link in span.links:
        shorter, more = cut(link.attributes or {})
        links.append(Link(link.context, _like(link.attributes, shorter)) if more else link)
        count += more
    if not count + cut_before:
        return span
    mark = {STAGETRACE_TRUNCATED_ATTRIBUTES: count + cut_before}
    return FinishedSpan(span, {**attributes, **mark}, events=events, links=links)


def _like(old: Any, new: Mapping[str, Any]) -> BoundedAttributes:
    """Return attributes that remember what the SDK dropped of the old ones."""
    attributes = BoundedAttributes(attributes=dict(new), immutable=False)
    attributes.dropped = getattr(old, "dropped", 0)
    return attributes


def plain(attributes: Mapping[str, Any], texts: Collection[str] = ()) -> dict[str, Any]:
    """Return what a person gave a stage as attributes that can be sent: the text of what is no plain value.

    Those that `texts` names become text whatever they are.
    What is too long is cut, what is too much or has no text is left out, and both are counted in attributes of ours.
    """
    limit = longest()
    kept: dict[str, Any] = {}
    dropped = truncated = 0
    for key, value in attributes.items():
        if len(kept) >= MAX_ATTRIBUTES:
            dropped = len(attributes) - MAX_ATTRIBUTES
            break
        try:
            text = value if _is_plain(value) and (key not in texts or isinstance(value, str)) else str(value)
        except Exception:  # noqa: BLE001 -- the person's own __str__
            dropped += 1
            continue
        if isinstance(text, str) and len(text) > limit:
            text = text[:limit]
            truncated += 1
        kept[key] = text
    if dropped:
        kept[STAGETRACE_DROPPED_ATTRIBUTES] = dropped
    if truncated:
        kept[STAGETRACE_TRUNCATED_ATTRIBUTES] = truncated
    return kept


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | float) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)
