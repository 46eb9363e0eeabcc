"""The tokens that a request's generative models have generated: how many, and when. Plain data.

Counted is where the tokens are generated, in this process: how long the client waits for them is that of `Stream`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final, Protocol

from stagetrace import semconv
from stagetrace.semconv import (
    TOKENS_CALLS,
    TOKENS_ERROR,
    TOKENS_FIRST_MS,
    TOKENS_GAP_MAX_MS,
    TOKENS_GAP_MEAN_MS,
    TOKENS_INCOMPLETE,
    TOKENS_PER_SECOND,
)
from stagetrace.system.threads import allocate_lock

MAX_CALLS: Final = 1_000  # of one request
_OF_FIRST: Final = (
    *(semconv.OPERATION_NAME, semconv.PROVIDER_NAME, semconv.REQUEST_MODEL, semconv.REQUEST_STREAM),
    *semconv.LATENCIES,
)
_adding = allocate_lock()  # guards the creation of a request's Generation, and of its call by hand


class Call:
    """One call of a generative model. Times in nanoseconds since the epoch; None is what is not known.

    `attributes` are those of its stage: more are added as the call ends. `following` is how many tokens came
    after the first one of their sequence, and how long these took in all.
    """

    output: int | None = None  # tokens generated
    input: int | None = None  # tokens of the prompt, those from a cache included
    cached: int | None = None  # of these, those from a cache
    first: int | None = None  # when the first token had been generated
    last: int = 0  # and the last one
    following: tuple[int, int] | None = None
    first_chunk: int | None = None  # when the caller was given the first part of a streamed response
    widest_ns: int | None = None  # longest time from a token to the next
    ended: int | None = None
    error: str | None = None
    is_incomplete = False  # it was given up before its end
    state: Any = None  # of what reads the engine's results

    def __init__(self, attributes: dict[str, Any], began: int) -> None:
        self.attributes = attributes
        self.began = began
        self.phases: dict[str, int] = {}  # name of an attribute -> nanoseconds, as the engine reports them
        self.placed: list[tuple[str, int, int]] = []  # those whose times are known: name, begin, end

    def add(self, now: int, count: int = 1, *, is_first: bool = False, since: int | None = None) -> None:
        """Count tokens that a sequence got at once, its first ones or more. There is no gap between these.

        Where there are several sequences, `since` is when this one got the tokens before.
        """
        if count < 1:
            return
        following, took = self.following or (0, 0)
        if is_first or self.first is None:
            following += count - 1
            self.first = now if self.first is None else self.first
        else:
            gap = max(now - (self.last if since is None else since), 0)  # the wall clock may step back
            if self.widest_ns is None or gap > self.widest_ns:
                self.widest_ns = gap
            following, took = following + count, took + gap
        self.following = following, took
        self.output = (self.output or 0) + count
        self.last = max(now, self.last)

    def end(self, now: int, error: str | None = None, *, is_incomplete: bool = False) -> None:
        """End, with the class of the exception that it raised."""
        if self.ended is None:
            self.ended, self.error, self.is_incomplete = now, error, is_incomplete
            self.describe(now)

    def describe(self, now: int) -> None:
        """Add to the attributes of its stage what is known at `now`."""
        until = self.ended or self.last or now  # it may have been given up after the last token
        known = _token_attributes(self.output, self.following, until - self.began)
        known[semconv.INPUT_TOKENS] = self.input
        known[semconv.CACHE_READ_TOKENS] = self.cached
        known[TOKENS_GAP_MAX_MS] = _ms(self.widest_ns)
        known[TOKENS_FIRST_MS] = _ms(_since(self.began, self.first))
        known[semconv.TIME_TO_FIRST_CHUNK] = _s(_since(self.began, self.first_chunk))
        known.update({name: took / 1e9 for name, took in self.phases.items()})
        known[TOKENS_INCOMPLETE] = True if self.is_incomplete or self.ended is None else None
        known[TOKENS_ERROR] = self.error
        self.attributes.update({name: value for name, value in known.items() if value is not None})


# The call that the code which runs now works for: what counts tokens inside an engine asks here.
active: ContextVar[Call | None] = ContextVar("stagetrace.generative_call", default=None)


class Generation:
    """The calls of generative models that one request has made; one stands for all tokens that were noted by hand."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.by_hand: Call | None = None
        self.is_truncated = False

    @property
    def first(self) -> int | None:
        """When the first token had been generated; None if that is not known of each call."""
        firsts = [call.first for call in self.calls]
        known = [first for first in firsts if first is not None]
        return min(known) if known and (len(known) == len(firsts) or firsts[0] == min(known)) else None

    @property
    def last(self) -> int:
        """When the last token had been generated."""
        return max((call.last for call in self.calls), default=0)

    @property
    def following(self) -> int | None:
        """How many tokens came after the first one of their sequence; None if that is not known of each call."""
        return self._sum(0)

    @property
    def following_ns(self) -> int:
        """How long these took in all."""
        return self._sum(1) or 0

    def _sum(self, which: int) -> int | None:
        counts = [call.following for call in self.calls]
        if self.is_truncated or not counts or None in counts:
            return None
        return sum(count[which] for count in counts if count is not None)

    def attributes(self, start: int, end: int) -> dict[str, Any]:
        """Return what the entry span, which lasts from `start` to `end`, carries instead of its first inference's.

        Times are from its start; sums and means are those of all calls. None stands for what is not known.
        """
        for call in self.calls:
            if call.ended is None:
                call.describe(end)
                call.attributes = {**call.attributes}  # those of the stage are encoded while the call may still run
        calls = self.calls
        following, took = self.following, sum((call.ended or call.last or end) - call.began for call in calls)
        outputs, inputs = _total(call.output for call in calls), _total(call.input for call in calls)
        found = _token_attributes(outputs, None if following is None else (following, self.following_ns), took)
        found[semconv.INPUT_TOKENS] = inputs
        found[TOKENS_FIRST_MS] = _ms(_since(start, self.first))
        chunks = [call.first_chunk for call in calls if call.first_chunk is not None]
        found[semconv.TIME_TO_FIRST_CHUNK] = _s(_since(start, min(chunks, default=None)))
        found[semconv.CACHE_READ_TOKENS] = _total(call.cached for call in calls)
        gaps = [call.widest_ns for call in calls]
        found[TOKENS_GAP_MAX_MS] = None if None in gaps else _ms(max(gap for gap in gaps if gap is not None))
        found.update({name: calls[0].attributes.get(name) for name in _OF_FIRST})
        if len(calls) > 1:
            found[TOKENS_CALLS] = len(calls)
            found.update(dict.fromkeys(semconv.LATENCIES))
        if self.is_truncated:
            found.update(dict.fromkeys((semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS)))
        if self.is_truncated or self.by_hand is not None:  # of which it is not known when it began
            found[TOKENS_PER_SECOND] = None
        found[TOKENS_ERROR] = next((call.error for call in calls if call.error is not None), None)
        found[TOKENS_INCOMPLETE] = any(call.is_incomplete or call.ended is None for call in calls) or None
        return found


class Generating(Protocol):
    """A request."""

    generation: Generation | None


def _of(request: Generating) -> Generation:
    if request.generation is None:
        request.generation = Generation()
    return request.generation


def note(request: Generating, generated: int, prompt: int, now: int) -> None:
    """Count tokens that were noted by hand."""
    with _adding:
        generation = _of(request)
        call = generation.by_hand
        if call is None:
            call = generation.by_hand = Call({}, now)
            generation.calls.append(call)
    if prompt:
        call.input = (call.input or 0) + prompt
    call.add(now, generated)
    call.ended = now  # until there are more


def begin(request: Generating, attributes: dict[str, Any], now: int) -> Call:
    """Begin a call for a request; `attributes` are those of its stage."""
    call = Call(attributes, now)
    with _adding:
        generation = _of(request)
    if len(generation.calls) < MAX_CALLS:
        generation.calls.append(call)
    else:
        generation.is_truncated = True
    return call


def _token_attributes(output: int | None, following: tuple[int, int] | None, took_ns: int) -> dict[str, Any]:
    count, following_ns = following or (0, 0)
    return {
        semconv.OUTPUT_TOKENS: output,
        TOKENS_PER_SECOND: output * 1e9 / took_ns if output is not None and took_ns > 0 else None,
        TOKENS_GAP_MEAN_MS: following_ns / count / 1e6 if count else None,
    }


def _total(counts: Any) -> int | None:
    found = list(counts)
    return None if None in found else sum(found)


def _since(start: int, at: int | None) -> int | None:
    return None if at is None else max(at - start, 0)


def _ms(took_ns: int | None) -> float | None:
    return None if took_ns is None else took_ns / 1e6


def _s(took_ns: int | None) -> float | None:
    return None if took_ns is None else took_ns / 1e9
