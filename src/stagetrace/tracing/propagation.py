"""The W3C trace context and baggage: read from the headers of a request, written to those of a call."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus, unquote_plus

from stagetrace.tracing.span_context import SpanContext, TraceFlags, TraceState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TRACEPARENT: Final = re.compile(
    r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?[ \t]*", re.ASCII
)
_LONGEST_STATE: Final = 512
# https://www.w3.org/TR/baggage/
_NAME: Final = re.compile(r"[\x21\x23-\x27\x2a\x2b\x2d\x2e\x30-\x39\x41-\x5a\x5e-\x7a\x7c\x7e]+")
_TEXT: Final = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
_PROPERTY: Final = re.compile(rf"[ \t]*{_NAME.pattern}[ \t]*(?:=[ \t]*{_TEXT}[ \t]*)?")
_VALUE: Final = re.compile(_TEXT)
_MOST_PAIRS: Final = 180
_LONGEST_PAIR: Final = 4_096
_LONGEST_BAGGAGE: Final = 8_192

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
FIELDS: Final = frozenset((TRACEPARENT, TRACESTATE, BAGGAGE))
# By their names in OTEL_PROPAGATORS.
BY_PROPAGATOR: Final = {"tracecontext": (TRACEPARENT, TRACESTATE), "baggage": (BAGGAGE,)}


class Context(dict[str, Any]):
    """What a request brings along: the span that has called, and its baggage. It is not changed."""

    __slots__ = ()


NO_CONTEXT: Final = Context()
SPAN: Final = "stagetrace.span"  # keys of a Context
PAIRS: Final = "stagetrace.baggage"


def extract(carrier: Mapping[str, str | list[str]]) -> Context:
    """Return what headers carry, by their names in lower case: a value, or the values of several of one name."""
    found: dict[str, Any] = {}
    given = _values(carrier, TRACEPARENT)
    context = _span_context(given[0], _values(carrier, TRACESTATE)) if given else None
    if context is not None:
        found[SPAN] = context
    baggage = _values(carrier, BAGGAGE)
    if baggage and (pairs := _pairs(baggage[0])):
        found[PAIRS] = pairs
    return Context(found) if found else NO_CONTEXT


def _values(carrier: Mapping[str, str | list[str]], name: str) -> list[str]:
    value = carrier.get(name)
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _span_context(header: str, states: list[str]) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = None
    if states and sum(map(len, states)) + len(states) - 1 <= _LONGEST_STATE:
        state = TraceState.from_header(states)
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)  # noqa: FBT003


def _pairs(header: str) -> dict[str, str]:
    if len(header.encode(errors="replace")) > _LONGEST_BAGGAGE:
        return {}
    found: dict[str, str] = {}
    for entry in _within_limits(re.split(r"[ \t]*,[ \t]*", header)):
        name, equals, value = entry.partition("=")
        name, value = name.strip(" \t"), value.strip(" \t")
        if equals and _NAME.fullmatch(name) and _is_value(value):
            found[unquote_plus(name).strip()] = unquote_plus(value).strip()
    return found


def _is_value(text: str) -> bool:
    value, *properties = text.split(";")
    return _VALUE.fullmatch(value.rstrip(" \t")) is not None and all(map(_PROPERTY.fullmatch, properties))


def _within_limits(entries: Iterable[str]) -> Iterator[str]:
    length = 0
    usable = (one for one in entries if one and one.isascii() and len(one) <= _LONGEST_PAIR)
    for number, entry in enumerate(usable):
        length += len(entry) + (1 if number else 0)
        if number >= _MOST_PAIRS or length > _LONGEST_BAGGAGE:
            return
        yield entry


def headers(context: SpanContext, pairs: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the headers that carry a span's context, and baggage."""
    found: dict[str, str] = {}
    if context.is_valid:
        trace_id, span_id, _, flags, state, _ = context
        found[TRACEPARENT] = f"00-{trace_id:032x}-{span_id:016x}-{int(flags):02x}"
        if state:
            found[TRACESTATE] = state.to_header()
    if pairs:
        each = (f"{quote_plus(str(name))}={quote_plus(str(value))}" for name, value in pairs.items())
        if text := ",".join(_within_limits(each)):
            found[BAGGAGE] = text
    return found


def span_in(context: Mapping[str, Any]) -> SpanContext | None:
    """Return the span that has called; None if the request has brought along none."""
    return context.get(SPAN)


def with_span(context: Mapping[str, Any], span: SpanContext) -> Context:
    """Return the context with another span in it."""
    return Context({**context, SPAN: span})
