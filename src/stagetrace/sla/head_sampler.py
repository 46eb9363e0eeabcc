"""Draw the ids of our own entry spans, and decide as the provider's head sampler does whether they are kept."""

from __future__ import annotations

from random import getrandbits
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, get_current_span
from opentelemetry.trace.span import DEFAULT_TRACE_STATE

from stagetrace.request.own_span import Identity
from stagetrace.sla.sampling import Chances, is_own

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from stagetrace.request.request import Request

# By whether the span is sampled (1) and its trace id random (2).
_FLAGS = [TraceFlags(flags) for flags in range(4)]
_made: Any = tuple.__new__  # what the named tuples' own calls, with nothing left to check


class HeadSampler:
    """The sampler and the id generator of the provider that this package has set.

    `reads_attributes`: whether the sampler, which is not the SDK's, looks at a span's attributes. `draws`: whether
    `draw` does what sampler and generator do.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._ids = provider.id_generator
        self._sampler = getattr(provider.sampler, "root", provider.sampler)
        self.reads_attributes = is_own(self._sampler)  # the SDK's do not look at any
        # OpenTelemetry's own samplers, which most services have, decide by the parent, else by the trace id: known here
        # without a call into them.
        own = self.reads_attributes
        self._by_parent = not own and _like(self._sampler, DEFAULT_ON)
        self._chances = Chances(self._sampler)
        self._bound = None if own or not self._chances.is_by_parent else self._chances.bound
        self._probability = self._chances.of_root
        # The ids of the SDK's own generator are drawn here, too, unless they were asked for before.
        self.draws = type(self._ids) is RandomIdGenerator and (self._by_parent or self._bound is not None)

    def identify(self, request: Request) -> Identity:
        """Draw the ids of a span and ask the sampler whether to keep it."""
        ids, parent_context = self._ids, request.parent_context
        parent = get_current_span(parent_context).get_span_context() if parent_context else None
        if parent is None or not parent.is_valid:
            parent, trace_id, random, state = (
                None,
                request.drawn or ids.generate_trace_id(),
                ids.is_trace_id_random(),
                None,
            )
        else:
            trace_id, random, state = parent.trace_id, parent.trace_flags.random_trace_id, parent.trace_state
        if self._by_parent:
            is_sampled = is_recording = parent is None or parent.trace_flags.sampled
        elif self._bound is not None:
            by_id = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
            is_sampled = is_recording = by_id if parent is None else parent.trace_flags.sampled
            if parent is None and is_sampled:
                state = self._chances.state_of(trace_id)
        else:
            given = request.known_attributes() if self.reads_attributes else {}
            result = self._sampler.should_sample(parent_context, trace_id, request.name, SpanKind.SERVER, given)
            is_sampled, is_recording = result.decision.is_sampled(), result.decision.is_recording()
            state = result.trace_state
            if result.attributes:
                request.added = {key: value for key, value in result.attributes.items() if key not in given}
        request.probability = self._chances.of(parent, state, is_sampled=is_sampled)
        flags = _FLAGS[(1 if is_sampled else 0) + (2 if random else 0)]
        context = SpanContext(trace_id, ids.generate_span_id(), False, flags, state)  # noqa: FBT003
        if not is_recording and not request.is_over:
            request.held = True
        return Identity(context, parent, is_sampled)

    def draw(self, request: Request, *, keep: bool) -> bool:
        """Do what `identify` does, without calls: for a root span whose ids were not asked for before, where `draws`.

        The span gets no identity if it is neither sampled nor to be kept; return whether it has one.
        """
        trace_id = getrandbits(128) or 1
        is_sampled = self._bound is None or trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        if not is_sampled and not keep:
            return False
        if self._probability is not None:
            request.probability = self._probability
        flags = _FLAGS[3 if is_sampled else 2]
        parts = (trace_id, getrandbits(64) or 1, False, flags, DEFAULT_TRACE_STATE, True)
        with request.lock:
            if request.ids is None:
                request.ids = _made(Identity, (_made(SpanContext, parts), None, is_sampled))
        return True


def _like(sampler: Sampler, known: Sampler) -> bool:
    return bool(sampler.get_description() == known.get_description())
