"""The stacks that were sampled while a request was late (events `stall`): read back, and as lines of text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from stagetrace import semconv
from stagetrace.output.units import milliseconds
from stagetrace.span_attributes import number, text
from stagetrace.store.base import SpanEvent, SpanRow, Value

_SHOWN: Final = 4  # stacks; --json has all
_INNERMOST: Final = 4  # places of a stack
REQUEST: Final = "request"
# Whose stacks there are, in words, in the order in which they are read.
_WHOSE: Final = {
    REQUEST: "the request",
    "blocker": "what it waited for",
    "rival": "a thread that computed meanwhile",
    "pool": "a thread of the pool",
    "resumed": "a block of resume in another process",
}
_ORDER: Final = {of: place for place, of in enumerate(_WHOSE)}
_PLACE: Final = re.compile(r'\s*File "(.+)", line (\d+), in (.+)')


class Stall(NamedTuple):
    """One distinct stack; what its event lacks is None."""

    at_unix_nano: int  # of its first sample
    of: str
    line: str  # of the application, `app.py:41 in predict`
    samples: float | None
    out_of: float | None
    gil_ms: float | None  # for how long the sampler could not run before
    stack: str  # as of a traceback, the innermost place last

    @property
    def whose(self) -> str:
        """Return whose stack it is, in words; a word of a later version as it is."""
        return _WHOSE.get(self.of, self.of)

    @property
    def seen(self) -> str:
        """Return how often it was seen."""
        known = self.samples is not None and self.out_of is not None
        return f"{self.samples:g} of {self.out_of:g} samples" if known else ""

    @property
    def gil(self) -> str:
        """Return what kept the sampler from a sample before."""
        return "" if self.gil_ms is None else f"before it, the GIL was held for {milliseconds(self.gil_ms)}"

    def after(self, span: SpanRow) -> str:
        """Return when it was first seen, after the start of its span."""
        return milliseconds((self.at_unix_nano - span.start_unix_nano) / 1e6)


def stalls_of(span: SpanRow) -> list[Stall]:
    """Return the stacks of an entry span: those of the request first, and of each kind the most frequent."""
    found = [_stall(event) for event in span.events if event.name == semconv.STALL]
    return sorted(found, key=lambda one: (_ORDER.get(one.of, len(_ORDER)), one.of, -(one.samples or 0)))


def lines_of(span: SpanRow) -> Iterator[str]:
    """Yield each stack of an entry span: whose it is, the application's line, how often it was seen, innermost places.

    The places are in the order of a traceback, the innermost last.
    """
    stalls = stalls_of(span)
    for one in stalls[:_SHOWN]:
        yield f"  stall: {sentence(one, span)}{one.gil and f'; {one.gil}'}"
        places = _places(one.stack)
        if len(places) > _INNERMOST:
            yield "      ..."
        yield from (f"      {place}" for place in places[-_INNERMOST:])
    if more := len(stalls[_SHOWN:]):
        yield f"  stall: {more} more stack{'' if more == 1 else 's'}; --json has all"


def sentence(one: Stall, span: SpanRow) -> str:
    """Return whose stack it is, where, how often it was seen and when first."""
    return f"{one.whose} at {one.line}{one.seen and f', {one.seen}'}, first {one.after(span)} after the start"


def _stall(event: SpanEvent) -> Stall:
    read = event.attributes
    return Stall(
        event.time_unix_nano,
        text(read, semconv.STALL_OF) or "",
        _line(read),
        number(read, semconv.STALL_SAMPLES),
        number(read, semconv.STALL_OUT_OF),
        number(read, semconv.STALL_GIL_MS),
        text(read, semconv.CODE_STACKTRACE) or "",
    )


def _line(event: Mapping[str, Value]) -> str:
    line = number(event, semconv.CODE_LINE_NUMBER)
    path, function = (text(event, name) for name in (semconv.CODE_FILE_PATH, semconv.CODE_FUNCTION_NAME))
    return f"{path or '?'}:{'?' if line is None else int(line)} in {function or '?'}"


def _places(stack: str) -> list[str]:
    """Return the places of a stack, the innermost last: `app.py:41 in predict`."""
    found = []
    for line in stack.splitlines():
        place = _PLACE.fullmatch(line)
        found.append(line.strip() if place is None else f"{place[1]}:{place[2]} in {place[3]}")
    return found
