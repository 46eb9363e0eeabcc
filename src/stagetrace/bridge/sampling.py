"""Judge every request under any head sampling of an SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, TraceState, get_current_span

from stagetrace.guard import guarded
from stagetrace.semconv import SLA_SAMPLING_PROBABILITY, SLA_UPGRADED
from stagetrace.sla.sampling import Chances
from stagetrace.tracing import sampler as samplers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link


def is_own(sampler: Any) -> bool:
    """Return whether a sampler, or one that it wraps, is not of the SDK, whose samplers are described in full."""
    if type(sampler).__module__ != Sampler.__module__:
        return True
    return any(is_own(inner) for inner in vars(sampler).values() if isinstance(inner, Sampler))


def known(sampler: Any) -> samplers.Sampler | None:
    """Return what a sampler decides by; None where it is not one of OpenTelemetry's usual ones."""
    return None if is_own(sampler) else samplers.described(sampler.get_description())


class KeepBreaches(Sampler):
    """A sampler that records what `root` drops, marked with `sla.upgraded`, so that it can still be judged.

    Spans so recorded are exported only if their request is a breach, for which SLASpanProcessor is responsible. Entry
    spans have their sampling probability, so that readers can estimate how many there were.
    """

    def __init__(self, root: Sampler) -> None:
        self.root = root
        self._chances = Chances(known(root))

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Return the root's decision, with DROP turned into RECORD_ONLY."""
        result = self.root.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        return self._weighted(parent_context, trace_id, kind, _recorded(result, attributes) or result) or result

    def get_description(self) -> str:
        """Return the root's description inside our own."""
        return f"KeepBreaches{{{self.root.get_description()}}}"

    @guarded
    def _weighted(
        self, parent_context: Context | None, trace_id: int, kind: SpanKind | None, result: SamplingResult
    ) -> SamplingResult:
        """Return the result with the probability: an entry span's attribute, and in the tracestate of a root span."""
        parent: Any = get_current_span(parent_context).get_span_context()
        is_root, is_sampled = not parent.is_valid, bool(result.decision.is_sampled())  # type: ignore[no-untyped-call]
        state = result.trace_state
        if is_root and is_sampled and not state:
            own = self._chances.state_of(trace_id)
            state = None if own is None else TraceState(list(own.items()))
        attributes: Any = result.attributes
        if kind is SpanKind.SERVER and (is_root or parent.is_remote):
            probability = self._chances.of(None if is_root else parent, state, is_sampled=is_sampled)
            if probability is not None:
                attributes = {**(attributes or {}), SLA_SAMPLING_PROBABILITY: probability}
        if state == result.trace_state and attributes is result.attributes:
            return result
        return SamplingResult(result.decision, attributes, state)


@guarded
def _recorded(result: SamplingResult, attributes: Any) -> SamplingResult:
    if result.decision is not Decision.DROP:
        return result
    return SamplingResult(Decision.RECORD_ONLY, {**(attributes or {}), SLA_UPGRADED: True}, result.trace_state)
