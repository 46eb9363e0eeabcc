"""Draw the ids of our own entry spans, and decide as the head sampler does whether they are kept."""

from __future__ import annotations

from random import getrandbits
from typing import TYPE_CHECKING, Any, Protocol

from stagetrace.request.context import here
from stagetrace.request.own_span import Identity
from stagetrace.sla.sampling import Chances
from stagetrace.tracing.sampler import TRACE_ID_LIMIT, Sampler
from stagetrace.tracing.span_context import NO_STATE, SpanContext, TraceFlags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.request.request import Request

# By whether the span is sampled (1) and its trace id random (2).
_FLAGS = [TraceFlags(flags) for flags in range(4)]
_made: Any = tuple.__new__  # what the named tuples' own calls, with nothing left to check


class Ids(Protocol):
    """Generates ids, as OpenTelemetry's generators do."""

    def generate_trace_id(self) -> int:
        """Return the id of a trace."""

    def generate_span_id(self) -> int:
        """Return the id of a span."""

    def is_trace_id_random(self) -> bool:
        """Return whether the last 56 bits of its ids of traces are random."""


class RandomIds:
    """Ids of random bits."""

    def generate_trace_id(self) -> int:
        """Return the id of a trace."""
        return getrandbits(128) or 1

    def generate_span_id(self) -> int:
        """Return the id of a span."""
        return getrandbits(64) or 1

    def is_trace_id_random(self) -> bool:
        """Return whether the last 56 bits of its ids of traces are random."""
        return True


class Foreign(Protocol):
    """A sampler that is none of OpenTelemetry's usual ones: `bridge.tracer.ForeignSampler`."""

    def ask(
        self, request: Request, trace_id: int, given: dict[str, Any]
    ) -> tuple[bool, bool, Any, Mapping[str, Any] | None]:
        """Return whether an entry span is sampled, whether it is recorded, its tracestate, and what it is to have.

        `given` are the attributes that are known as the request comes in.
        """

    def get_description(self) -> str:
        """Return it in words."""


class HeadSampler:
    """The sampler and the generator of ids that entry spans go by.

    `reads_attributes`: whether the sampler, which is a foreign one, looks at a span's attributes. `draws`: whether
    `draw` does what sampler and generator do.
    """

    def __init__(self, sampler: Sampler | Foreign, ids: Ids) -> None:
        self.sampler = sampler
        self._ids = ids
        # OpenTelemetry's own samplers, which most services have, decide by the parent, else by the trace id.
        usual = sampler if isinstance(sampler, Sampler) else None
        self.reads_attributes = usual is None
        self._chances = Chances(usual)
        self._is_by_parent = self._chances.is_by_parent
        self._bound = self._chances.bound
        self._probability = self._chances.of_root
        # The ids of the usual generator are drawn here, too, unless they were asked for before.
        self._is_random = type(ids) is RandomIds
        self.draws = self._is_random and usual is not None

    def identify(self, request: Request) -> Identity:
        """Draw the ids of a span and ask the sampler whether to keep it."""
        ids, parent_context = self._ids, request.parent_context
        parent = here.span_in(parent_context) if parent_context else None
        if parent is None or not parent.is_valid:
            parent, state = None, None
            trace_id, random = request.drawn or ids.generate_trace_id(), ids.is_trace_id_random()
        else:
            trace_id, random, state = parent.trace_id, bool(parent.trace_flags & 2), parent.trace_state
        sampler = self.sampler
        if isinstance(sampler, Sampler):
            if parent is not None and self._is_by_parent:
                is_sampled = bool(parent.trace_flags & 1)
            else:
                is_sampled = self._bound is None or trace_id & TRACE_ID_LIMIT < self._bound
            is_recording = is_sampled
            if parent is None and is_sampled:
                state = self._chances.state_of(trace_id)
        else:
            given = request.known_attributes()
            is_sampled, is_recording, state, added = sampler.ask(request, trace_id, given)
            if added:
                request.added = {key: value for key, value in added.items() if key not in given}
        request.probability = self._chances.of(parent, state, is_sampled=is_sampled)
        flags = _FLAGS[(1 if is_sampled else 0) + (2 if random else 0)]
        span_id = getrandbits(64) or 1 if self._is_random else ids.generate_span_id()
        context = _made(SpanContext, (trace_id, span_id, False, flags, state or NO_STATE, True))
        if not is_recording and not request.is_over:
            request.held = True
        return Identity(context, parent, is_sampled)

    def begin(self, parent: SpanContext | None) -> SpanContext:
        """Return the identity of a new span below a parent of this process, or of a trace of its own."""
        if parent is not None and parent.is_valid:
            trace_id, flags, state = parent.trace_id, parent.trace_flags, parent.trace_state
            if self._is_by_parent or self.reads_attributes:
                return SpanContext(trace_id, self._ids.generate_span_id(), False, flags, state)  # noqa: FBT003
        else:
            trace_id, flags, state = self._ids.generate_trace_id(), _FLAGS[2], None
        is_sampled = self._bound is None or trace_id & TRACE_ID_LIMIT < self._bound
        if parent is None and is_sampled:
            state = self._chances.state_of(trace_id)
        flags = _FLAGS[(1 if is_sampled else 0) + (int(flags) & 2)]
        return SpanContext(trace_id, self._ids.generate_span_id(), False, flags, state)  # noqa: FBT003

    def draw(self, request: Request, *, keep: bool) -> bool:
        """Do what `identify` does, without calls: for a root span whose ids were not asked for before, where `draws`.

        The span gets no identity if it is neither sampled nor to be kept; return whether it has one.
        """
        trace_id = getrandbits(128) or 1
        is_sampled = self._bound is None or trace_id & TRACE_ID_LIMIT < self._bound
        if not is_sampled and not keep:
            return False
        if self._probability is not None:
            request.probability = self._probability
        flags = _FLAGS[3 if is_sampled else 2]
        parts = (trace_id, getrandbits(64) or 1, False, flags, NO_STATE, True)
        with request.lock:
            if request.ids is None:
                request.ids = _made(Identity, (_made(SpanContext, parts), None, is_sampled))
        return True
