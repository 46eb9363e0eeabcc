"""infinity-emb: each request's wait for its batches, and the one inference of all requests in a batch.

The items of all requests go through a list, sorted by their length, into batches. Three threads of each model prepare
a batch, run the model, and make its results: each takes batches out of the queue before it.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import before, patching, then
from stagetrace.instrumentation.batching import served_batches
from stagetrace.instrumentation.batching.served_batches import BATCH_WAIT, enter, leave, wait_here, waiting_for_batch
from stagetrace.semconv import INFERENCE, ML_BATCH_SIZE, ML_FRAMEWORK, ML_MODEL_NAME, QUEUE, QUEUE_REASON

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.request.remote_stages import RequestRef
    from stagetrace.request.worker import Batch, Work

WAIT = "_stagetrace_wait"  # on an item: the Wait of its request
WAITS = {QUEUE_REASON: BATCH_WAIT}
LOOPS = ("_preprocess_batch", "_core_batch", "_postprocess_batch")
STEPS = "_stagetrace_steps"  # on a worker: its Steps


class Wait(served_batches.Wait):
    """The wait of a request for the batches that its items come into; it is over when it is in the first."""

    def take(self, at: int) -> RequestRef | None:
        """Return the request of a batch that begins; the items that are left wait from then on."""
        from stagetrace.request.remote_stages import RequestRef, hand_on

        request, since = self.request, self.since
        if request.closed or request.entry is None:
            return None
        self.since, self.is_over = at, True
        return RequestRef(hand_on(request, BATCH_WAIT, since), request.entry)


def _begin_wait(_queue: Any, items: Any, *_: Any, **__: Any) -> None:
    wait = wait_here.get()
    if wait is not None:
        wait.since = time.time_ns()
        for one in items:
            vars(one.item)[WAIT] = wait


def _watch(worker: Any) -> None:
    """Let each thread of a worker report what it takes out of the queue before it, and puts into the one after it."""
    steps = Steps(worker._model)
    setattr(worker, STEPS, steps)
    worker._input_q = _Queue(worker._input_q, got=steps.prepare)
    worker._feature_queue = _Queue(worker._feature_queue, steps.wait, steps.infer)
    worker._postprocess_queue = _Queue(worker._postprocess_queue, steps.wait, steps.go_on)
    worker._output_q = _Queue(worker._output_q, steps.finish)


def _looping(original: Any) -> Any:
    @functools.wraps(original)
    def loop(self: Any) -> Any:
        try:
            return original(self)
        finally:  # by an exception, too: then no more batch of this worker is completed
            _abandon(self)

    return loop


@guarded_end
def _abandon(worker: Any) -> None:
    steps: Steps | None = getattr(worker, STEPS, None)
    if steps is not None:
        steps.abandon()


def _nothing(_thing: Any) -> None:
    pass


class _Queue:
    """A queue as one worker has it: what is `put` into it, and `got` out of it, is reported before that goes on."""

    def __init__(
        self, queue: Any, put: Callable[[Any], None] = _nothing, got: Callable[[Any], None] = _nothing
    ) -> None:
        self._queue = queue
        self._put = put
        self._got = got

    def put(self, thing: Any, *args: Any, **kwargs: Any) -> Any:
        self._put(thing)  # again where the queue is full
        return self._queue.put(thing, *args, **kwargs)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        thing = self._queue.get(*args, **kwargs)
        self._got(thing)
        return thing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class Steps:
    """What the threads of a worker do for the batches that they have taken, in the order of its methods."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._open: dict[int, _Batch] = {}  # by the id of the list of its items, which the queues hold

    @guarded
    def prepare(self, items: Any) -> None:
        """Begin a batch that this thread has taken, and prepares."""
        self._open.pop(id(items), None)
        now = time.time_ns()
        waits = {id(wait): wait for wait in (vars(item).get(WAIT) for item in items) if wait is not None}
        requests = [request for request in (wait.take(now) for wait in waits.values()) if request is not None]
        if requests:
            self._open[id(items)] = batch = _Batch(self._work(requests, len(items), now))
            batch.go_on()

    def _work(self, requests: list[RequestRef], rows: int, now: int) -> Work | Batch:
        """Return the work for these requests: where it is for one alone, its stages are the request's own."""
        from stagetrace.request.worker import Batch, Work

        args = self._model.engine_args
        work: Work | Batch
        if len(requests) == 1:
            work = Work(requests[0], BATCH_WAIT, start=now)
            work.named = {ML_MODEL_NAME: args.served_model_name, ML_BATCH_SIZE: rows}
        else:
            work = Batch(requests, len(requests), BATCH_WAIT, start=now)
            work.named = {ML_MODEL_NAME: args.served_model_name}
        work.described = {ML_FRAMEWORK: str(args.engine.value)}  # where no patch of a library knows it
        return work

    @guarded_end
    def wait(self, thing: Any) -> None:
        """Let a batch wait for the next thread: this one has prepared it, or has run the model."""
        batch = self._open.get(id(thing[1]))
        if batch is not None:
            batch.wait()

    @guarded
    def infer(self, thing: Any) -> None:
        """Begin the inference of a batch in this thread."""
        self.go_on(thing, INFERENCE)

    @guarded
    def go_on(self, thing: Any, stage: str = "") -> None:
        """Note that this thread works for a batch: without a stage, it makes the results."""
        batch = self._open.get(id(thing[1]))
        if batch is not None:
            batch.go_on(stage)

    @guarded_end
    def finish(self, thing: Any) -> None:
        """End a batch, before its requests receive their results."""
        batch = self._open.pop(id(thing[1]), None)
        if batch is not None:
            batch.end()

    def abandon(self) -> None:
        """End the batches that are open, whose threads may have left them already."""
        while self._open:
            self._open.popitem()[1].finish()


class _Batch:
    """A batch that a worker has taken: a thread works for it, or it waits for the next one."""

    def __init__(self, work: Work | Batch) -> None:
        self._work = work
        self._inside: Any = None  # what the thread needs to leave it
        self._stage = ""  # that was begun and has not ended

    def go_on(self, stage: str = "") -> None:
        """Let this thread work for it, in a stage if one is given."""
        now = time.time_ns()
        self._leave(now)
        self._inside = enter(self._work)
        if stage:
            self._work.report_begin(stage, now)
            self._begin(stage, now)

    def wait(self) -> None:
        """Let it wait, if this thread has worked for it until now."""
        if self._inside is not None:
            now = time.time_ns()
            self._leave(now)
            self._work.thread = 0  # none works for it: where one stands says nothing of it
            self._begin(QUEUE, now)

    def end(self) -> None:
        """End it in the thread that works for it, and report the stages to its requests."""
        self._leave(time.time_ns())
        self.finish()

    def finish(self) -> None:
        """Report the stages to its requests."""
        leave(self._work, None)

    def _begin(self, stage: str, now: int) -> None:
        self._stage = stage
        self._work.enter(stage, WAITS if stage == QUEUE else None, now)

    def _leave(self, now: int) -> None:
        if self._stage:
            self._work.leave(self._stage, now)
            self._stage = ""
        if self._inside is not None:
            leave(None, self._inside)
            self._inside = None


patch_queue = patching(
    {"CustomFIFOQueue.extend": before(_begin_wait)}
)  # by which a request puts its items into the list
patch_batch_handler = patching(
    {
        "BatchHandler._schedule": waiting_for_batch(Wait),
        "ModelWorker.__init__": then(_watch),
        **{f"ModelWorker.{name}": _looping for name in LOOPS},
    }
)
