"""The stacks that were sampled while a request was late (events `stall`), as lines of text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from stagetrace import semconv
from stagetrace.output.units import milliseconds
from stagetrace.span_attributes import number, text
from stagetrace.store.base import SpanEvent, SpanRow, Value

_SHOWN: Final = 4  # stacks, those with most samples; --json has all
_INNERMOST: Final = 4  # places of a stack
_WHOSE: Final = {
    "request": "the request",
    "blocker": "what it waited for",
    "rival": "a thread that computed meanwhile",
    "pool": "a thread of the pool",
}
_PLACE: Final = re.compile(r'\s*File "(.+)", line (\d+), in (.+)')


def lines_of(span: SpanRow) -> Iterator[str]:
    """Yield each stack of an entry span: whose it is, the application's line, how often it was seen, innermost places.

    The places are in the order of a traceback, the innermost last.
    """
    stalls = [one for one in span.events if one.name == semconv.STALL]
    stalls.sort(key=lambda one: -(number(one.attributes, semconv.STALL_SAMPLES) or 0))
    for one in stalls[:_SHOWN]:
        yield _head(one, span)
        places = places_of(one.attributes)
        if len(places) > _INNERMOST:
            yield "      ..."
        yield from (f"      {place}" for place in places[-_INNERMOST:])
    if more := len(stalls[_SHOWN:]):
        yield f"  stall: {more} more stack{'' if more == 1 else 's'}, seen less often; --json has all"


def _head(stall: SpanEvent, span: SpanRow) -> str:
    read = stall.attributes
    of = text(read, semconv.STALL_OF) or ""
    samples, out_of = (number(read, name) for name in (semconv.STALL_SAMPLES, semconv.STALL_OUT_OF))
    seen = "" if samples is None or out_of is None else f", {samples:g} of {out_of:g} samples"
    after = milliseconds((stall.time_unix_nano - span.start_unix_nano) / 1e6)
    gil_ms = number(read, semconv.STALL_GIL_MS)
    gil = "" if gil_ms is None else f"; before it, another thread held the GIL for {milliseconds(gil_ms)}"
    return f"  stall: {_WHOSE.get(of, of)} at {line_of(read)}{seen}, first {after} after the start{gil}"


def line_of(event: Mapping[str, Value]) -> str:
    """Return the application's line of an event, `app.py:41 in predict`."""
    line = number(event, semconv.CODE_LINE_NUMBER)
    path, function = (text(event, name) for name in (semconv.CODE_FILE_PATH, semconv.CODE_FUNCTION_NAME))
    return f"{path or '?'}:{'?' if line is None else int(line)} in {function or '?'}"


def places_of(event: Mapping[str, Value]) -> list[str]:
    """Return the places of an event's stack, the innermost last: `app.py:41 in predict`."""
    found = []
    for line in (text(event, semconv.CODE_STACKTRACE) or "").splitlines():
        place = _PLACE.fullmatch(line)
        found.append(line.strip() if place is None else f"{place[1]}:{place[2]} in {place[3]}")
    return found
