"""Carry a request where no context goes: over queues of the service's own, into threads and other processes."""

from __future__ import annotations

from contextlib import suppress
from time import time_ns
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from stagetrace import settings
from stagetrace.guard import guarded, guarded_end
from stagetrace.request.context import here, meet_otel
from stagetrace.request.current import current, recording
from stagetrace.request.stages import coalesced
from stagetrace.request.working import put_down, take_up, work_here, worker_here
from stagetrace.semconv import HANDLER, INFERENCE, ML_BATCH_SIZE, ML_STAGE
from stagetrace.tracing import propagation
from stagetrace.tracing.span import SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    from stagetrace.request.remote_stages import RequestRef
    from stagetrace.request.request import Request
    from stagetrace.request.stages import Stages
    from stagetrace.request.worker import Batch

KEY = "stagetrace"  # in a carrier, beside W3C's: which request of which process it is
SPAN_NAME = "resume"

# The spans that were current where something was carried, by its key, as long as they live without us.
_spans: WeakValueDictionary[str, Any] = WeakValueDictionary()


def carry() -> dict[str, str]:
    """Return what `resume` needs to continue the current request in another thread or process.

    A few short texts, for JSON, pickle or the headers of a message: W3C's `traceparent`, `tracestate` and `baggage`,
    and one of our own. Empty where nothing is traced. Never raises.
    """
    return _carry() or {}


class resume:  # noqa: N801 -- reads as a statement: `with stagetrace.resume(carrier):`
    """Continue, in this block, the request from which a carrier of `carry` comes.

    In the same process the block is a part of the request, as long as that runs: its stages and marks count there. In
    another process it is a span of its own, under the stage in which the request was when it was carried, with the
    stages that are seen in it below. With an empty carrier, or one that cannot be read, it does nothing. Never raises.
    """

    __slots__ = ("_block", "_carrier")

    def __init__(self, carrier: Mapping[str, str] | None) -> None:
        self._carrier = carrier
        self._block: _Block | None = None

    def __enter__(self) -> None:
        self._block = _begin(self._carrier) if self._carrier else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._block is not None:
            self._block.end(error)
            self._block = None


@guarded
def _carry() -> dict[str, str]:
    meet_otel()
    request = recording()
    carrier = here.carrier(request)
    if request is not None:
        from stagetrace.request.remote_stages import hand_on

        key = carrier[KEY] = hand_on(request)
        with suppress(TypeError):  # a span class of others, without weak references
            _spans[key] = here.current_span()
    return carrier


class _Block:
    """The context that `resume` has set, and resets."""

    def __init__(self, request: Request | None, context: Any) -> None:
        self._entered = current.set(request)
        self._attached = here.attach(context)
        self._worker: Any = None
        self._before: Request | None = None
        if request is not None:
            self._take_up(request)

    @guarded
    def _take_up(self, request: Request) -> None:
        self._worker = worker_here()
        self._before = take_up(request, self._worker)

    @guarded_end
    def end(self, error: BaseException | None) -> None:
        """Reset the context; `error` is what the block raised."""
        try:
            self._end_span(error)
        finally:
            here.detach(self._attached)
            current.reset(self._entered)
            if self._worker is not None:
                put_down(self._worker, self._before)

    def _end_span(self, error: BaseException | None) -> None:
        pass


class _RemoteBlock(_Block):
    """A block in another process than the request's: a span, and the stages that are seen below it."""

    def __init__(self, key: str, context: Mapping[str, Any]) -> None:
        from stagetrace.request.worker import Resumed

        self._parent = context
        self._start = time_ns()
        self._span = here.start_span(SPAN_NAME, context, SpanKind.CONSUMER, start=self._start)
        self._request = Resumed(key, self._start)
        work_here(self._request)
        self._request.bind(self._span.get_span_context(), self._start)
        super().__init__(self._request, here.around_span(self._span, context))

    def _end_span(self, error: BaseException | None) -> None:
        from stagetrace.request import limits

        ended_at = max(time_ns(), self._start)
        self._request.unwatch()
        try:
            stages = self._request.close(self._start, ended_at)
            self._add_stages(stages)
            self._span.set_attributes(dict(stages.model))
            if isinstance(error, Exception):
                limits.record(self._span, error)
                here.set_error(self._span, limits.description_of(error))
        finally:
            self._span.end(ended_at)
            self._request.abandon()

    def _add_stages(self, stages: Stages) -> None:
        """Add the spans of stages and details below the block's own."""
        from stagetrace.request.details import placed_details

        details = placed_details(self._request, stages, self._span.get_span_context())
        segments = stages.segments()
        spans: dict[int, Any] = {}
        if any(segment.stage != HANDLER for segment in segments):
            for segment in coalesced(segments):
                attributes = {ML_STAGE: segment.stage, **segment.attributes}
                if segment.coalesced:
                    attributes.update(segment.visits())
                span = self._add(self._span, segment.stage, attributes, (segment.start, segment.end))
                if segment.context is not None:
                    spans[segment.context.span_id] = span
        for one in details:
            self._add(spans.get(one.parent.span_id, self._span), one.name, one.attributes, (one.start, one.end))

    def _add(self, parent: Any, name: str, attributes: Mapping[str, Any], times: tuple[int, int]) -> Any:
        context = here.with_span(self._parent, parent.get_span_context())
        span = here.start_span(name, context, attributes=attributes, start=times[0])
        span.end(times[1])
        return span


# --- One inference for several requests, in a batcher of the service's own.


@guarded
def _begin(carrier: Mapping[str, str]) -> _Block | None:
    from stagetrace.request.remote_stages import find, is_here

    meet_otel()
    context: Any = propagation.extract(carrier)
    key = carrier.get(KEY, "")
    if is_here(key):
        span, request = _spans.get(key), find(key)
        context = here.around_span(span, context) if span is not None else here.in_full(context)
        return _Block(request if request is not None and not request.closed else None, context)
    if not context:
        return None
    if key and here.span_in(context) is not None and has_provider():
        return _RemoteBlock(key, context)
    return _Block(None, here.in_full(context))


def has_provider() -> bool:
    """Return whether spans that start here go anywhere; where this package is switched on, see to that."""
    if settings.SWITCH.read():
        from stagetrace.runtime.runtime import runtime

        if not runtime.ready:
            runtime.prepare_now()
        runtime.deliver_at_exit()
    elif meet_otel():
        from stagetrace.bridge.provider import own_provider

        here.has_provider = own_provider() is not None
    return here.records


REASON = "batch"


class batch:  # noqa: N801 -- reads as a statement: `with stagetrace.batch(carriers):`
    """Make the block the one inference of the requests that `carriers`, of `carry`, come from.

    Each of them then shows `queue` from when it was carried until the block begins, `inference` while it runs, with
    their number as `ml.batch.size`, and a link to one span `inference`, under which what the block starts hangs and
    which links to all of them. The block may run in any thread or process of the service. What cannot be read among
    `carriers` counts for the size alone; where nothing is traced, the block just runs. Never raises.
    """

    __slots__ = ("_carriers", "_open")

    def __init__(self, carriers: Iterable[Mapping[str, str] | None]) -> None:
        self._carriers = carriers
        self._open: tuple[Batch, AbstractContextManager[None]] | None = None

    def __enter__(self) -> None:
        self._open = _begin_batch(self._carriers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open is not None:
            made, self._open = self._open, None
            _end(*made)


@guarded
def _begin_batch(carriers: Iterable[Mapping[str, str] | None]) -> tuple[Batch, AbstractContextManager[None]] | None:

    given = list(carriers)
    requests = [request for request in map(_origin, given) if request is not None]
    if not requests or not has_provider():
        return None
    from stagetrace.request.worker import Batch, at_work

    made = Batch(requests, len(given), REASON)
    made.enter(INFERENCE, {ML_BATCH_SIZE: len(given)}, made.started)
    inside = at_work(made)
    inside.__enter__()
    return made, inside


@guarded_end
def _end(made: Batch, inside: AbstractContextManager[None]) -> None:
    inside.__exit__(None, None, None)
    made.leave(INFERENCE)
    made.finish()


@guarded
def _origin(carrier: Mapping[str, str] | None) -> RequestRef | None:
    if not carrier:
        return None
    from stagetrace.request.remote_stages import RequestRef, entry_of

    key = carrier.get(KEY)
    span = propagation.span_in(propagation.extract(carrier))
    return RequestRef(key, entry_of(key, span)) if key and span is not None else None
