"""The stacks of a late request as the view of a trace shows them: on a card, and as marks in the waterfall. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace import semconv
from stagetrace.output.stalls import REQUEST, Stall, sentence, stalls_of
from stagetrace.page.span_keys import key_of
from stagetrace.printable import printable
from stagetrace.span_attributes import number, text

if TYPE_CHECKING:
    from stagetrace.store.base import SpanRow

MOST: Final = 50  # of a request; the panel of its span has all
_LONGEST: Final = 10_000  # characters of a stack


class Stack(NamedTuple):
    """One stack: `key` names its element and its mark, `spans` are the keys of those that light up with it."""

    key: str
    stall: Stall
    text: str
    stage: str | None
    after: str
    spans: tuple[str, ...]

    @property
    def frames(self) -> int:
        """Return how many places the text has."""
        return self.text.count("\n") + 1


class Stood(NamedTuple):
    """Where a request stood: whose -> stacks, as many as are shown of `distinct`; and how many were not recorded."""

    kinds: Sequence[tuple[str, Sequence[Stack]]]
    distinct: int
    dropped: int

    @property
    def shown(self) -> int:
        """Return how many stacks are shown."""
        return sum(len(stacks) for _, stacks in self.kinds)


def stood_of(place: int, spans: Sequence[SpanRow], otherwise: tuple[str, ...]) -> Stood:
    """Return where the request of the entry span at this place stood; `otherwise`: spans to light without a stage."""
    entry = spans[place]
    found = stalls_of(entry)
    stages = [
        span for span in spans if span.parent_span_id == entry.span_id and text(span.attributes, semconv.ML_STAGE)
    ]
    stacks = [_stack(at, one, entry, stages, otherwise) for at, one in enumerate(found[:MOST])]
    kinds = [(whose, list(alike)) for whose, alike in groupby(stacks, lambda one: one.stall.whose)]
    return Stood(kinds, len(found), round(number(entry.attributes, semconv.STAGETRACE_DROPPED_STALLS) or 0))


def marks_of(entry: SpanRow, begin: int) -> list[tuple[int, str, bool, str]]:
    """Return time after `begin`, key, whether it is the request's own, and text of each stack of an entry span."""
    return [
        (one.at_unix_nano - begin, _key(entry, at), one.of == REQUEST, printable(sentence(one, entry)))
        for at, one in enumerate(stalls_of(entry)[:MOST])
    ]


def _stack(at: int, one: Stall, entry: SpanRow, stages: Sequence[SpanRow], otherwise: tuple[str, ...]) -> Stack:
    time = one.at_unix_nano
    stage = next((span for span in stages if span.start_unix_nano <= time < span.end_unix_nano), None)
    return Stack(
        _key(entry, at),
        one,
        one.stack[:_LONGEST],
        None if stage is None else stage.name,
        one.after(entry),
        otherwise if stage is None else (key_of(stage),),
    )


def _key(entry: SpanRow, at: int) -> str:
    return f"{key_of(entry)}-{at}"
