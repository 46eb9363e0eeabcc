"""Work that is done here for requests of this or another process: for one, or in a batch for several at once."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, TraceState

from stagetrace.guard import guarded, guarded_end
from stagetrace.recording.context import RequestSpan
from stagetrace.recording.current_record import current
from stagetrace.recording.record import RequestRecord
from stagetrace.recording.remote_stages import find, hand_on, named, tell, told
from stagetrace.recording.segments import UNNAMED, coalesced
from stagetrace.recording.spans import SCOPE, UNSET
from stagetrace.semconv import HANDLER, INFERENCE, ML_BATCH_SIZE, POSTPROCESS, PREPROCESS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stagetrace.recording.segments import Segment


GAPS = (PREPROCESS, HANDLER, POSTPROCESS)


class RequestRef(NamedTuple):
    """A request that work is done for: its key, and the span that stands for it."""

    key: str
    context: SpanContext
    is_batch: bool = False  # it stands for several, whose span is that of their inference


def hand_on_reference(timeline: RequestRecord, reason: str) -> str | None:
    """Return a short text that names a request which is handed on now, to be read by `origin` in whatever process.

    None where it has no entry span.
    """
    context = timeline.entry
    if context is None or not context.is_valid:
        return None
    return _text(hand_on(timeline, reason, is_server=True), timeline, context)


@guarded
def token(timeline: RequestRecord) -> str | None:
    """Return a short text that names a request and, as its span, the stage that it is in, to be read by `origin`.

    None where it has no entry span.
    """
    context = timeline.stage_context()
    return _text(named(timeline), timeline, context) if context is not None and context.is_valid else None


def _text(key: str, timeline: RequestRecord, context: SpanContext) -> str:
    kind = "batch" if isinstance(timeline, Batch) else "request"
    flags = int(context.trace_flags)
    return f"{key} {kind} {context.trace_id:032x}-{context.span_id:016x}-{flags:02x} {context.trace_state.to_header()}"


@guarded
def origin(text: str) -> RequestRef:
    """Return what a `ticket` or a `token` names."""
    key, kind, ids, *state = text.split(" ", 3)
    trace_id, span_id, flags = (int(part, 16) for part in ids.split("-"))
    trace_state = TraceState.from_header(state) if any(state) else None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=trace_state)
    return RequestRef(key, context, kind == "batch")


class Work(RequestRecord):
    """What is done for one request: a timeline whose stages become part of the request's own.

    `described` are the model's attributes where nothing inside says more, `named` those that win over what is said.
    """

    described: Mapping[str, Any] = {}
    named: Mapping[str, Any] = {}
    is_taken_up = False  # after it was taken from a queue to be one of a batch

    def __init__(self, request: RequestRef, reason: str = "", start: int | None = None) -> None:
        super().__init__(start=start)
        self.bound = True
        self._entry = request.context
        self.request = request
        self._reason = reason

    def stage_context(self) -> SpanContext | None:
        """Return the open stage's span context, as the request will have that stage."""
        return self.entry if self.request.is_batch else super().stage_context()

    @guarded
    def begin_telling(self, stage: str, at: int) -> None:
        """Tell what was done until now, when `stage` begins, lest this process ends before it can tell all."""
        with self._lock:
            segments = self._settle().so_far()[:-1]
        settled = [one for one in segments if one.explicit or one.stage not in UNNAMED]
        stages = [told(one, dict(one.attributes), one.link) for one in settled if not is_gap(one)]
        stages.append((stage, at, None, {**self.described, **self.named}, None, None))
        tell(self.request.key, self._reason, self._start, stages, is_over=False)

    @guarded_end
    def finish(self) -> None:
        """End, and tell the request's own timeline the stages that this was made of."""
        if self.closed:
            return
        segments = coalesced(self.close(self._start, max(time.time_ns(), self._start)).segments())
        stages = [told(one, self._attributes(one), one.link) for one in segments if not is_gap(one)]
        give_accounts(self, find(self.request.key))
        tell(self.request.key, self._reason, self._start, stages, is_over=True)

    def _attributes(self, segment: Segment) -> dict[str, Any]:
        if segment.stage != INFERENCE:
            return dict(segment.attributes)
        return {**self.described, **segment.attributes, **self.named}


class Batch(RequestRecord):
    """What is done for several requests at once. Its inference is one span, which they link to and it to them."""

    is_batch = True
    described: Mapping[str, Any] = {}
    named: Mapping[str, Any] = {}

    def __init__(self, requests: Sequence[RequestRef], size: int, reason: str = "", start: int | None = None) -> None:
        super().__init__(start=start)
        self.bound = True
        self.requests = requests
        self._size = size
        self._reason = reason
        sampled = any(request.context.trace_flags.sampled for request in requests)
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        self._entry = SpanContext(
            random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False, trace_flags=flags
        )

    def stage_context(self) -> SpanContext | None:
        """Return the context of the one inference: all that is started meanwhile hangs under that."""
        return self.entry

    @guarded
    def begin_telling(self, stage: str, at: int) -> None:
        """Tell each request that `stage` begins, lest it ends before this does."""
        attributes = {**self.described, **self.named, ML_BATCH_SIZE: self._size}
        link = (
            (self.entry.trace_id, self.entry.span_id, int(self.entry.trace_flags)) if self.entry is not None else None
        )
        for request in self.requests:
            tell(request.key, self._reason, self._start, [(stage, at, None, attributes, None, link)], is_over=False)

    @guarded_end
    def finish(self) -> None:
        """End, make the inference's span, and tell each request."""
        if self.closed:
            return
        segments = coalesced(self.close(self._start, max(time.time_ns(), self._start)).segments())
        inferences = [segment for segment in segments if segment.stage == INFERENCE]
        for segment in inferences:
            attributes = {**self.described, **segment.attributes, **self.named, ML_BATCH_SIZE: self._size}
            segment.attributes = attributes
        stages = [
            told(one, dict(one.attributes), self.entry if one.stage == INFERENCE else None)
            for one in segments
            if not is_gap(one)
        ]
        for request in self.requests:
            give_accounts(self, find(request.key))
            tell(request.key, self._reason, self._start, stages, is_over=True)
        if inferences:
            self._send(inferences)

    def _send(self, inferences: list[Segment]) -> None:
        provider: Any = trace.get_tracer_provider()
        processor = getattr(provider, "_active_span_processor", None)  # as in docs/decisions/003
        context = self.entry
        if processor is None or context is None or not context.trace_flags.sampled:
            return
        processor.on_end(
            ReadableSpan(
                name=INFERENCE,
                context=context,
                resource=provider.resource,
                attributes=inferences[0].attributes,
                links=[Link(request.context) for request in self.requests],
                status=UNSET,
                start_time=inferences[0].start,
                end_time=inferences[-1].end,
                instrumentation_scope=SCOPE,
            )
        )


def give_accounts(work: RequestRecord, request: RequestRecord | None) -> None:
    """Note on a request of this process the sections of what was done for it: how its own time divides, too."""
    if request is not None:
        for first, last in work.cpu_samples:
            request.divided(first, last)


def is_gap(segment: Segment) -> bool:
    """Return whether a segment is what lies between others: the request's own timeline names that itself."""
    return segment.stage in GAPS and not segment.explicit and segment.context is None


@contextmanager
def at_work(work: Work | Batch) -> Iterator[None]:
    """Let what runs in the block be done for these requests: stages, and the parents of spans."""
    tokens = _come_in(work)
    try:
        yield
    finally:
        if tokens is not None:
            _go_out(*tokens)


@guarded
def _come_in(work: Work | Batch) -> tuple[Any, Any]:
    span = RequestSpan(NonRecordingSpan(work.entry), work)  # type: ignore[arg-type]  # it has one
    return current.set(work), attach(trace.set_span_in_context(span, Context()))


@guarded_end
def _go_out(entered: Any, attached: Any) -> None:
    detach(attached)
    current.reset(entered)
