"""Judge every request under any sampling, and bring back whole what a breach needs."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from stagetrace.guard import guarded
from stagetrace.semconv import SLA_UPGRADED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Link, SpanKind, TraceState

MAX_HELD_SPANS = 20_000
MAX_HELD_PER_TRACE = 1_000
MAX_KEPT_TRACES = 1_024


class KeepBreaches(Sampler):
    """A sampler that records what `root` drops, marked with `sla.upgraded`, so that it can still be judged.

    Spans so recorded leave the process only if their request breaks its promise; SLASpanProcessor sees to that.
    """

    def __init__(self, root: Sampler) -> None:
        self.root = root

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
        if result.decision is not Decision.DROP:
            return result
        return _recorded(result, attributes) or result

    def get_description(self) -> str:
        """Return the root's description inside our own."""
        return f"KeepBreaches{{{self.root.get_description()}}}"


@guarded
def _recorded(result: SamplingResult, attributes: Any) -> SamplingResult:
    return SamplingResult(Decision.RECORD_ONLY, {**(attributes or {}), SLA_UPGRADED: True}, result.trace_state)


def dropped(span: ReadableSpan) -> bool:
    """Return whether the head sampler had dropped the span."""
    return bool(span.attributes) and SLA_UPGRADED in span.attributes  # type: ignore[operator]


class HeldSpans:
    """Dropped spans of requests still open, in bounded memory. Not thread-safe: the processor's lock guards it."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}  # trace id -> entry spans still open
        self._spans: dict[int, list[ReadableSpan]] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # traces of breaches, for spans that end late
        self._held = 0
        self._lost: dict[int, int] = {}  # spans that a breach will lack, by trace

    def open(self, trace_id: int) -> None:
        """Begin to hold the spans of a trace."""
        self._open[trace_id] = self._open.get(trace_id, 0) + 1

    def add(self, trace_id: int, span: ReadableSpan) -> bool:
        """Hold a span; return True if its trace is already kept, and the span is to be sent at once."""
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
        """End one entry span of a trace; return the spans to send now, and how many there was no room for.

        These are all of the trace if a breach keeps it.
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
