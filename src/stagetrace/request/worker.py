"""Work that is done here for requests of this or another process: for one, or in a batch for several at once."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.request.details import details_within
from stagetrace.request.in_flight import in_flight
from stagetrace.request.loop_blockers import stepped
from stagetrace.request.remote_stages import (
    MAX_SECTIONS,
    bounds_of,
    find,
    report_stages,
    report_stalls,
    section_reports,
    stage_report,
)
from stagetrace.request.request import Request
from stagetrace.request.spans import SCOPE, child
from stagetrace.request.stages import UNNAMED, coalesced
from stagetrace.request.stalls import REQUEST, RESUMED, StallReporter
from stagetrace.request.working import work_here
from stagetrace.semconv import HANDLER, INFERENCE, ML_BATCH_SIZE, POSTPROCESS, PREPROCESS
from stagetrace.sources.thread_cpu import is_of_this_thread, sample
from stagetrace.tracing.propagation import NO_CONTEXT
from stagetrace.tracing.span import Link, Span
from stagetrace.tracing.span_context import NO_FLAGS, SAMPLED, SpanContext

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stagetrace.request.in_flight import Bounds
    from stagetrace.request.remote_stages import RequestRef
    from stagetrace.request.stages import Segment
    from stagetrace.request.stalls import Stall
    from stagetrace.sources.thread_cpu import CpuSample

GAPS = (PREPROCESS, HANDLER, POSTPROCESS)


class Part(Request):
    """Work for requests that begin and end elsewhere. It is late when the first of them is."""

    is_part = True
    _reporter: StallReporter | None = None  # from its first stall on

    @guarded
    def watch(self, bounds: Iterable[Bounds | None]) -> None:
        """Have the work sampled once the first of its requests is late; these are their bounds, where known."""
        known = [one for one in bounds if one is not None] if in_flight.is_watched else []
        if known:
            self.bounds = min(known, key=_late_at)
            in_flight.begin_part(self, max(_late_at(self.bounds), self.started))

    @guarded_end
    def unwatch(self) -> None:
        """Stop the sampling: the work is over."""
        if self.bounds is not None and time.time_ns() > _late_at(self.bounds):
            in_flight.look_back(self)
        in_flight.end_part(self)
        self.work = None
        if self._reporter is not None:
            report_stalls(self.keys(), (), self._reporter, time.time_ns())

    def divide_step(self) -> None:
        """Note the step of a task in which this ends: that ends later."""
        if self.step is not None and is_of_this_thread(self.step):
            self.divide(self.step)

    def keys(self) -> Sequence[str]:
        """Return the keys of its requests."""
        raise NotImplementedError

    def add_stalls(self, stalls: Sequence[Stall]) -> None:
        """Report stacks to each request, unless this work waits for other work that reports its own."""
        if self.remote_stages is None or not self.remote_stages.have_stalls:
            self.pass_on_stalls(stalls)

    def pass_on_stalls(self, stalls: Sequence[Stall]) -> None:
        """Report stacks to each request at once: the request may end before this work does."""
        self._reporter = self._reporter or StallReporter()
        report_stalls(self.keys(), stalls, self._reporter)


def _late_at(bounds: Bounds) -> int:
    return bounds.start + bounds.late


class Work(Part):
    """Work for one request: its stages become part of that request's own.

    `described` are the model's attributes where its patch records none, `named` those that win over what it records.
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
        self.watch([bounds_of(request.key)])

    def keys(self) -> Sequence[str]:
        """Return the key of its one request."""
        return (self.request.key,)

    def stage_context(self) -> SpanContext | None:
        """Return the open stage's span context, as the request will have that stage."""
        return self.entry if self.request.is_batch else super().stage_context()

    @guarded
    def report_begin(self, stage: str, at: int) -> None:
        """Report what was done until now, as `stage` begins: this process may end before it can report the rest."""
        settled = [one for one in self.so_far()[:-1] if one.explicit or one.stage not in UNNAMED]
        stages = [stage_report(one, dict(one.attributes), one.link) for one in settled if not is_gap(one)]
        stages.append((stage, at, None, {**self.described, **self.named}, None, None))
        report_stages(self.request.key, self._reason, self.started, stages, is_over=False)

    @guarded_end
    def finish(self) -> None:
        """End, and report the stages that this was made of to that request."""
        if self.closed:
            return
        self.divide_step()
        self.unwatch()
        closed = self.close(self.started, max(time.time_ns(), self.started))
        segments = coalesced(closed.segments())
        stages = [stage_report(one, self._attributes(one), one.link) for one in segments if not is_gap(one)]
        give_cpu_samples(self, find(self.request.key))
        details = None if self.details is None else self.details.report(closed)
        sections = section_reports(self) or ()
        report_stages(
            self.request.key, self._reason, self.started, stages, is_over=True, details=details, sections=sections
        )

    def _attributes(self, segment: Segment) -> dict[str, Any]:
        if segment.stage != INFERENCE:
            return dict(segment.attributes)
        return {**self.described, **segment.attributes, **self.named}


class Batch(Part):
    """Work for several requests at once. Its inference is one span; the requests and this span link to each other."""

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
        ids = random.getrandbits(128) or 1, random.getrandbits(64) or 1
        self._entry = SpanContext(*ids, is_remote=False, trace_flags=SAMPLED if sampled else NO_FLAGS)
        self.watch(bounds_of(request.key) for request in requests)

    def keys(self) -> Sequence[str]:
        """Return the keys of its requests."""
        return [request.key for request in self.requests]

    def stage_context(self) -> SpanContext | None:
        """Return the context of the one inference: all that is started meanwhile hangs under that."""
        return self.entry

    @guarded
    def report_begin(self, stage: str, at: int) -> None:
        """Report to each request that `stage` begins: it may end before this does."""
        attributes = {**self.described, **self.named, ML_BATCH_SIZE: self._size}
        link = (
            (self.entry.trace_id, self.entry.span_id, int(self.entry.trace_flags)) if self.entry is not None else None
        )
        for request in self.requests:
            report_stages(
                request.key, self._reason, self.started, [(stage, at, None, attributes, None, link)], is_over=False
            )

    @guarded_end
    def finish(self) -> None:
        """End, make the inference's span, and report to each request."""
        if self.closed:
            return
        self.divide_step()
        self.unwatch()
        segments = coalesced(self.close(self.started, max(time.time_ns(), self.started)).segments())
        inferences = [segment for segment in segments if segment.stage == INFERENCE]
        for segment in inferences:
            attributes = {**self.described, **segment.attributes, **self.named, ML_BATCH_SIZE: self._size}
            segment.attributes = attributes
        stages = [
            stage_report(one, dict(one.attributes), self.entry if one.stage == INFERENCE else None)
            for one in segments
            if not is_gap(one)
        ]
        sections = section_reports(self) or ()
        for request in self.requests:
            give_cpu_samples(self, find(request.key))
            report_stages(request.key, self._reason, self.started, stages, is_over=True, sections=sections)
        if inferences:
            self._send(inferences)

    def _send(self, inferences: list[Segment]) -> None:
        context = self.entry
        if context is None or not context.trace_flags.sampled:
            return
        for name, parent, start, end, attributes in details_within(self, inferences, context):
            of_detail = Span(
                name,
                child(parent),
                parent,
                attributes=attributes,
                start_time=start,
                end_time=end,
                scope=SCOPE,
            )
            here.add(of_detail)
        here.add(
            Span(
                INFERENCE,
                context,
                attributes=inferences[0].attributes,
                links=[Link(request.context) for request in self.requests],
                start_time=inferences[0].start,
                end_time=inferences[-1].end,
                scope=SCOPE,
            )
        )


class Resumed(Part):
    """What a block of `stagetrace.resume` does here for a request of another process."""

    def __init__(self, key: str, start: int) -> None:
        super().__init__(start=start)
        self._key = key
        self.watch([bounds_of(key)])

    def keys(self) -> Sequence[str]:
        """Return the key of its one request."""
        return (self._key,)

    def pass_on_stalls(self, stalls: Sequence[Stall]) -> None:
        """Report stacks of this block as `resumed`, not as the request's: the request may run meanwhile."""
        super().pass_on_stalls([one._replace(of=RESUMED) if one.of == REQUEST else one for one in stalls])


def give_cpu_samples(work: Request, request: Request | None) -> None:
    """Note on a request of this process the sections of the work for it: they divide the request's own time, too."""
    if request is not None:
        for first, last in work.cpu_samples:
            request.keep("cpu_samples", (first, last))
        request.remote_sections = [*request.remote_sections, *work.remote_sections][:MAX_SECTIONS]


def is_gap(segment: Segment) -> bool:
    """Return whether a segment is what lies between others: the request names that itself."""
    return segment.stage in GAPS and not segment.explicit and segment.context is None


@contextmanager
def at_work(work: Work | Batch) -> Iterator[None]:
    """Attribute what runs in the block to these requests: stages, the parents of spans, and its thread's time.

    In a task the thread runs others, too, while the block awaits: `followed` then has its time.
    """
    tokens = _come_in(work)
    try:
        yield
    finally:
        if tokens is not None:
            _go_out(*tokens)


@guarded
def _come_in(work: Work | Batch) -> tuple[Work | Batch, CpuSample | None, Any, Any]:
    work_here(work)
    first = sample() if work.work is None else None
    return work, first, current.set(work), here.attach(here.around(work, NO_CONTEXT))


@guarded_end
def _go_out(work: Work | Batch, first: CpuSample | None, entered: Any, attached: Any) -> None:
    work.divide(first)
    here.detach(attached)
    current.reset(entered)


def followed(coroutine: Any, work: Work | Batch | None) -> Any:
    """Return what to await of a coroutine that does this work: each of its steps is noted. Never raises."""
    return stepped(coroutine, work) if work is not None and type(coroutine) is CoroutineType else coroutine
