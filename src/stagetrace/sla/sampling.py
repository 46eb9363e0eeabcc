"""Judge every request under any head sampling, and keep the dropped spans of a breach."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, TraceState, get_current_span

from stagetrace.guard import guarded
from stagetrace.semconv import SLA_SAMPLING_PROBABILITY, SLA_UPGRADED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Link, SpanContext

MAX_HELD_SPANS = 20_000
MAX_HELD_PER_TRACE = 1_000
MAX_KEPT_TRACES = 1_024


class Chances:
    """The probability with which a head sampler keeps a request, as far as it is known, for its entry span.

    OpenTelemetry's own samplers have it as their rate, a caller that samples consistently as the threshold in the
    tracestate. Of other samplers nothing is known but that they drop, once they have dropped a request.
    """

    def __init__(self, sampler: Sampler) -> None:
        described = "" if is_own(sampler) else sampler.get_description()
        found = re.match(r"(?:ParentBased\{root:)?TraceIdRatioBased\{([\d.e-]+)\}", described)
        root = ALWAYS_ON if found is None else TraceIdRatioBased(float(found[1]))
        self.is_by_parent = described == ParentBased(root).get_description()  # type: ignore[no-untyped-call]
        is_known = self.is_by_parent or described == root.get_description()
        self._rate = root.rate if isinstance(root, TraceIdRatioBased) and is_known else 1.0 if is_known else None
        # Below which of a trace id's last 64 bits a root span is kept; None where that does not decide.
        self.bound = root.bound if isinstance(root, TraceIdRatioBased) and is_known else None
        self.of_root = _below_one(self._rate)
        self._drops = False  # whether it has dropped a request with an unknown probability

    def of(self, parent: SpanContext | None, state: TraceState | None, *, is_sampled: bool) -> float | None:
        """Return the entry span's probability, 0 where that is not known, None where all are kept.

        `state` is the tracestate of the span. A sampler that may drop counts as one that keeps all until it has dropped
        a request.
        """
        if self._rate is not None and (parent is None or not self.is_by_parent):
            return self.of_root
        given = probability_in(state.get(KEY, "")) if state else None
        if given is not None and is_sampled:
            return _below_one(given)
        if not is_sampled:
            self._drops = True
        return 0.0 if self._drops else None

    def state_of(self, trace_id: int) -> TraceState | None:
        """Return the tracestate that carries the probability of a kept root span to the services that it calls."""
        if self.bound is None or self.of_root is None:
            return None
        value = value_of(trace_id, self.bound)
        return None if value is None else TraceState([(KEY, value)])


def is_own(sampler: Sampler) -> bool:
    """Return whether a sampler, or one that it wraps, is not of the SDK, whose samplers are described in full."""
    if type(sampler).__module__ != ALWAYS_ON.__module__:
        return True
    return any(is_own(inner) for inner in vars(sampler).values() if isinstance(inner, Sampler))


def _below_one(probability: float | None) -> float | None:
    return None if probability is None or probability >= 1 else probability


class KeepBreaches(Sampler):
    """A sampler that records what `root` drops, marked with `sla.upgraded`, so that it can still be judged.

    Spans so recorded are exported only if their request is a breach, for which SLASpanProcessor is responsible. Entry
    spans have their sampling probability, so that readers can estimate how many there were.
    """

    def __init__(self, root: Sampler) -> None:
        self.root = root
        self._chances = Chances(root)

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
        parent = get_current_span(parent_context).get_span_context()
        is_root, is_sampled = not parent.is_valid, bool(result.decision.is_sampled())  # type: ignore[no-untyped-call]
        state = result.trace_state
        if is_root and is_sampled and not state:
            state = self._chances.state_of(trace_id)
        attributes: Any = result.attributes
        if kind is SpanKind.SERVER and (is_root or parent.is_remote):
            probability = self._chances.of(None if is_root else parent, state, is_sampled=is_sampled)
            if probability is not None:
                attributes = {**(attributes or {}), SLA_SAMPLING_PROBABILITY: probability}
        if state is result.trace_state and attributes is result.attributes:
            return result
        return SamplingResult(result.decision, attributes, state)


@guarded
def _recorded(result: SamplingResult, attributes: Any) -> SamplingResult:
    if result.decision is not Decision.DROP:
        return result
    return SamplingResult(Decision.RECORD_ONLY, {**(attributes or {}), SLA_UPGRADED: True}, result.trace_state)


def dropped(span: ReadableSpan) -> bool:
    """Return whether the head sampler had dropped the span."""
    return bool(span.attributes) and SLA_UPGRADED in span.attributes  # type: ignore[operator]


class HeldSpans:
    """Dropped spans of open requests, in bounded memory. Not thread-safe: the processor's lock guards it."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}  # trace id -> entry spans still open
        self._spans: dict[int, list[ReadableSpan]] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # traces of breaches, for spans that end late
        self._held = 0
        self._lost: dict[int, int] = {}  # trace id -> spans that a breach will lack

    def open(self, trace_id: int) -> None:
        """Begin to hold the spans of a trace."""
        self._open[trace_id] = self._open.get(trace_id, 0) + 1

    def add(self, trace_id: int, span: ReadableSpan) -> bool:
        """Hold a span; return True if its trace is already kept, and the span is to be exported at once."""
        if trace_id in self._kept:
            return True
        if trace_id not in self._open:
            return False
        spans = self._spans.setdefault(trace_id, [])
        if self._held >= MAX_HELD_SPANS or len(spans) >= MAX_HELD_PER_TRACE:
            self._lost[trace_id] = self._lost.get(trace_id, 0) + 1
            return False
        spans.append(span)
        self._held += 1
        return False

    def close(self, trace_id: int, *, keep: bool) -> tuple[list[ReadableSpan], int]:
        """End one entry span of a trace; return the spans to export now, and how many were lost for want of room.

        These are all spans of the trace if a breach keeps it.
        """
        left = self._open.get(trace_id, 1) - 1
        if left:
            self._open[trace_id] = left
        else:
            self._open.pop(trace_id, None)
        if keep:
            self._kept[trace_id] = None
            if len(self._kept) > MAX_KEPT_TRACES:
                self._kept.popitem(last=False)
        if left and not keep:
            return [], 0
        lost = self._lost.pop(trace_id, 0)
        spans = self._spans.pop(trace_id, [])
        self._held -= len(spans)
        return (spans, lost) if keep else ([], 0)


# --- OpenTelemetry's consistent probability sampling: what `ot=th:...` in a tracestate says of how likely a trace is
# kept.
#
# A trace is kept whose random value, 56 bits, is no less than the threshold: `th`, up to 14 hexadecimal digits without
# trailing zeros. The value is `rv` where the root gave one, else the last 56 bits of the trace id.
# https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/

KEY: Final = "ot"
_DIGITS: Final = 14
_ALL: Final = 1 << 4 * _DIGITS
_THRESHOLD: Final = re.compile(rf"(?:^|;)th:([0-9a-f]{{1,{_DIGITS}}})(?:;|$)", re.ASCII)
_LOW: Final = (1 << 64) - 1


def probability_in(value: str) -> float | None:
    """Return how likely a trace is kept by the value of `ot`; None where it says none, or nothing that is one."""
    found = _THRESHOLD.search(value.strip(" \t"))
    if found is None:
        return None
    return (_ALL - int(found[1].ljust(_DIGITS, "0"), 16)) / _ALL


def value_of(trace_id: int, bound: int) -> str | None:
    """Return the value of `ot` for a trace that was kept since its id's last 64 bits are below `bound`.

    That is what TraceIdRatioBased goes by, not the specification's comparison: `rv` says the random value by which both
    come to the same. None for a bound too low to be said.
    """
    if bound < 1 << 8:
        return None
    threshold = ((1 << 64) - bound) >> 8
    digits = f"{threshold:0{_DIGITS}x}".rstrip("0") or "0"
    return f"th:{digits};rv:{(~trace_id & _LOW) >> 8:0{_DIGITS}x}"
