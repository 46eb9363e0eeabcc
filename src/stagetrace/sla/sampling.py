"""With which probability a head sampler keeps a request, and the dropped spans of a breach, which are kept."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from stagetrace.semconv import SLA_UPGRADED
from stagetrace.tracing.span_context import TraceState

if TYPE_CHECKING:
    from stagetrace.tracing.sampler import Sampler
    from stagetrace.tracing.span_context import SpanContext

MAX_HELD_SPANS = 20_000
MAX_HELD_PER_TRACE = 1_000
MAX_KEPT_TRACES = 1_024


class Chances:
    """The probability with which a head sampler keeps a request, as far as it is known, for its entry span.

    OpenTelemetry's own samplers have it as their rate, a caller that samples consistently as the threshold in the
    tracestate. Of other samplers nothing is known but that they drop, once they have dropped a request.
    """

    def __init__(self, sampler: Sampler | None) -> None:
        """Begin with a sampler of OpenTelemetry's; None: another one."""
        self.is_by_parent = sampler is not None and sampler.by_parent
        # One that keeps nothing has no probability by which to count what a breach takes along.
        self._rate = None if sampler is None or not (sampler.rate or sampler.is_ratio) else sampler.rate
        # Below which of a trace id's last 64 bits a root span is kept; None where that does not decide.
        self.bound = None if sampler is None or sampler.rate == 1 else sampler.bound
        self.of_root = _below_one(self._rate)
        self._drops = False  # whether it has dropped a request with an unknown probability

    def of(self, parent: SpanContext | None, state: Any, *, is_sampled: bool) -> float | None:
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
        return None if value is None else TraceState({KEY: value})


def _below_one(probability: float | None) -> float | None:
    return None if probability is None or probability >= 1 else probability


def dropped(span: Any) -> bool:
    """Return whether the head sampler had dropped the span."""
    return bool(span.attributes) and SLA_UPGRADED in span.attributes


class HeldSpans:
    """Dropped spans of open requests, in bounded memory. Not thread-safe: the processor's lock guards it."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}  # trace id -> entry spans still open
        self._spans: dict[int, list[Any]] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # traces of breaches, for spans that end late
        self._held = 0
        self._lost: dict[int, int] = {}  # trace id -> spans that a breach will lack

    def open(self, trace_id: int) -> None:
        """Begin to hold the spans of a trace."""
        self._open[trace_id] = self._open.get(trace_id, 0) + 1

    def add(self, trace_id: int, span: Any) -> bool:
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

    def close(self, trace_id: int, *, keep: bool) -> tuple[list[Any], int]:
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
