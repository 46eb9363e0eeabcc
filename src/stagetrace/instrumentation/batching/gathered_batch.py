"""A batch that a consumer of the service's own gathers: what it has taken from a queue when it calls a model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.batching.queued_items import BATCH
from stagetrace.request.remote_stages import RequestRef, stage_report
from stagetrace.request.stages import UNNAMED
from stagetrace.request.worker import Batch, give_cpu_samples, is_gap
from stagetrace.request.working import put_down, take_up, worker_here
from stagetrace.semconv import INFERENCE, ML_BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.instrumentation.batching.queued_items import Item
    from stagetrace.request.remote_stages import StageReport
    from stagetrace.request.request import Request
    from stagetrace.request.stages import Segment


class GatheredBatch(Batch):
    """A batch of `items` that `consumer` works for, the id of a task or a thread; some of its items `before` are open.

    Each request receives its stages when its own future is done; the span of the inference is sent when all are done.
    """

    def __init__(self, items: Sequence[Item], consumer: int, before: Sequence[Item]) -> None:
        super().__init__(_origins(item.request for item in items), 0, BATCH)
        self.consumer = consumer
        self.has_begun = False
        self._rows: int | None = None  # of the first call, if fewer than the items that the consumer has taken
        self.futures: list[Any] = []  # of work that the consumer has submitted to pools
        self._items: list[Item] = []
        self._before = before
        self._calls: list[tuple[Any, Request | None]] = []  # of models, as long as they run: the worker of each
        self._ends = [True]  # the thread that takes this out closes the batch
        self._sends = [True]
        self._segments: list[Segment] | None = None
        self._reported: dict[int, Request] = {}  # by their ids
        self.add(items)
        if any(item.is_uncertain for item in before):
            self._mark_uncertain()

    def add(self, items: Sequence[Item]) -> None:
        """Add items that the consumer has taken before it called a model."""
        for item in items:
            item.batch = self
            if item.request is not None:
                item.request.batch = self
        self._items.extend(items)

    @property
    def is_known(self) -> bool:
        """Whether work was done for the batch, and for all of it."""
        return self.has_begun and self._rows is None

    @property
    def is_running(self) -> bool:
        """Whether work is done for it now."""
        return bool(self._calls) or any(not future.done() for future in self.futures)

    @property
    def is_partly_done(self) -> bool:
        """Whether some of its items are done."""
        return self.has_begun and any(item.is_done for item in self._items)

    def was_of(self, consumer: int) -> bool:
        """Return whether this consumer has worked for it, and does so no longer."""
        return self.consumer == consumer and not self.is_running

    def enter(self, activity: str, attributes: Mapping[str, Any] | None = None, at: int | None = None) -> None:
        """Note that an activity begins; the first inference shows for how many requests it is."""
        if activity == INFERENCE:
            self._begin((attributes or {}).get(ML_BATCH_SIZE))
        super().enter(activity, attributes, at)

    def leave(self, activity: str, at: int | None = None) -> None:
        """Note that an activity ends."""
        super().leave(activity, at)
        if activity == INFERENCE:
            self._leave()

    @guarded_end
    def _begin(self, rows: int | None) -> None:
        worker = worker_here()
        self._calls.append((worker, take_up(self, worker)))
        if self.closed:
            return
        if self.has_begun:
            if self._rows is not None:  # of the items before, or of the rest
                self._mark_uncertain()
            return
        self.has_begun = True
        waiting = [item for item in self._items if item.is_open]
        self._size = len({id(item.request) for item in waiting})
        if any(item.is_open for item in self._before):
            if rows != len(waiting):  # then those before may be in this call, too
                self._mark_uncertain()
        elif rows is not None and rows < len(waiting):
            self._rows = rows

    @guarded_end
    def _leave(self) -> None:
        try:
            worker = worker_here()
            call = next((one for one in self._calls if one[0] == worker), self._calls[-1])
            self._calls.remove(call)
            put_down(*call)
        finally:
            self.settle()

    def _mark_uncertain(self) -> None:
        self.closed = True
        for item in (*self._before, *self._items):
            item.mark_uncertain()

    def end_calls(self) -> None:
        """Count no more calls as this batch's, unless one runs: a future of it is done, or the next batch has begun."""
        if self.has_begun and not self._calls:
            if self._rows is not None:
                self._keep_done()
            self._close()

    def _keep_done(self) -> None:
        """Keep the items that are done, if as many as the rows of the call; leave the others to the next batch."""
        done = [item for item in self._items if item.is_done]
        if len(done) != self._rows:
            self._mark_uncertain()
            return
        for item in self._items:
            if item.is_open:
                item.batch = None
        self._items, self._rows = done, None
        self._size = len({id(item.request) for item in done})

    def _close(self) -> list[Segment]:
        if self._ends:
            self._ends.clear()
            self._segments = self.close(self.started, max(time.time_ns(), self.started)).segments()
        return self._segments or []

    def stages_for(self, request: Request, since: int, until: int) -> list[StageReport]:
        """Return the stages for one of its requests, which waited [since, until); none if it has received them."""
        if id(request) in self._reported:
            return []
        stages: list[StageReport] = []
        for one in self._stages():
            is_open = self._segments is None and one.end == one.start
            start, end = max(one.start, since), until if is_open else min(one.end, until)
            if start < end and (one.explicit or one.stage not in UNNAMED) and not is_gap(one):
                link = self.entry if one.stage == INFERENCE else None
                stages.append((one.stage, start, end, *stage_report(one, self._attributes(one), link)[3:]))
        if stages:
            self._reported[id(request)] = request
            give_cpu_samples(self, request)
        return stages

    def _attributes(self, segment: Segment) -> dict[str, Any]:
        size = {ML_BATCH_SIZE: self._size} if segment.stage == INFERENCE else {}
        return {**segment.attributes, **size}

    def _stages(self) -> list[Segment]:
        """Return the segments; the last one is open until the batch is closed."""
        return self.so_far() if self._segments is None else self._segments

    @guarded
    def settle(self) -> None:
        """Send the span of the inference, once all items are done that are certain to be in the batch."""
        if self._calls or not all(item.has_ended or item.is_uncertain for item in reversed(self._items)):
            return
        inferences = [one for one in self._close() if one.stage == INFERENCE]
        if inferences and self._reported and self._sends:
            self._sends.clear()
            self.requests = _origins(self._reported.values())
            inferences[0].attributes = self._attributes(inferences[0])
            self._send(inferences)
        self._items, self._before, self._reported = [], (), {}  # the consumer may keep this for long


def _origins(requests: Iterable[Request | None]) -> list[RequestRef]:
    return [RequestRef("", one.entry) for one in requests if one is not None and one.entry is not None]
