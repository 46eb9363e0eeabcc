"""The batch of a consumer that was not told of us: what it has taken out of a queue, as it calls a model for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.batching.queued_requests import BATCH
from stagetrace.recording.remote_stages import told
from stagetrace.recording.segments import UNNAMED
from stagetrace.recording.worker import Batch, Origin, give_accounts, is_gap
from stagetrace.semconv import INFERENCE, ML_BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.instrumentation.batching.queued_requests import Item
    from stagetrace.recording.remote_stages import Told
    from stagetrace.recording.segments import Segment
    from stagetrace.recording.timeline import Timeline


class Gathered(Batch):
    """A batch of `items`, which `maker`, a task or a thread, works for; of what it had `before` some is not done yet.

    Each request is told as its own future is done, the inference's span is sent when all are.
    """

    def __init__(self, items: Sequence[Item], maker: int, before: Sequence[Item]) -> None:
        super().__init__(_origins(item.timeline for item in items), 0, BATCH)
        self.maker = maker
        self.has_begun = False
        self._rows: int | None = None  # of the first call, where they are too few for all that its maker has taken
        self.futures: list[Any] = []  # of what its maker has given to pools
        self._items: list[Item] = []
        self._before = before
        self._calls: list[bool] = []  # of models, that have not ended
        self._ends = [True]  # who takes it out works out the stages
        self._sends = [True]
        self._segments: list[Segment] | None = None
        self._told: dict[int, Timeline] = {}  # by their ids
        self.add(items)
        if any(item.is_dropped for item in before):
            self._give_up()

    def add(self, items: Sequence[Item]) -> None:
        """Add what its maker has taken before it has called a model."""
        for item in items:
            item.batch = self
        self._items.extend(items)

    @property
    def is_known(self) -> bool:
        """Whether something was done for it, and for all of it."""
        return self.has_begun and self._rows is None

    @property
    def is_running(self) -> bool:
        """Whether something is done for it now."""
        return bool(self._calls) or any(not future.done() for future in self.futures)

    @property
    def is_answered(self) -> bool:
        """Whether some of it is done."""
        return self.has_begun and any(item.is_answered for item in self._items)

    def was_of(self, maker: int) -> bool:
        """Return whether this maker has worked for it, and does so no longer."""
        return self.maker == maker and not self.is_running

    def enter(self, activity: str, attributes: Mapping[str, Any] | None = None, at: int | None = None) -> None:
        """Note that an activity begins; with the first inference it is clear how many it is for."""
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
        self._calls.append(True)
        if self.closed:
            return
        if self.has_begun:
            if self._rows is not None:  # of those before, or of the rest
                self._give_up()
            return
        self.has_begun = True
        waiting = [item for item in self._items if item.is_open]
        self._size = len({id(item.timeline) for item in waiting})
        if any(item.is_open for item in self._before):
            if rows != len(waiting):  # a row for each of these alone: those before are not in this call, too
                self._give_up()
        elif rows is not None and rows < len(waiting):
            self._rows = rows

    @guarded_end
    def _leave(self) -> None:
        self._calls.pop()
        self.settle()

    def _give_up(self) -> None:
        self.closed = True
        for item in (*self._before, *self._items):
            item.drop()

    def end_calls(self) -> None:
        """Count no more calls as this batch's, unless it is in one: a future of it is done, or it has a successor."""
        if self.has_begun and not self._calls:
            if self._rows is not None:
                self._part()
            self._work_out()

    def _part(self) -> None:
        """Keep those that are done, if they account for the rows of the call, and leave the others to the next one."""
        done = [item for item in self._items if item.is_answered]
        if len(done) != self._rows:
            self._give_up()
            return
        for item in self._items:
            if item.is_open:
                item.batch = None
        self._items, self._rows = done, None
        self._size = len({id(item.timeline) for item in done})

    def _work_out(self) -> list[Segment]:
        if self._ends:
            self._ends.clear()
            self._segments = self.close(self._start, max(time.time_ns(), self._start))
        return self._segments or []

    def stages_for(self, timeline: Timeline, since: int, until: int) -> list[Told]:
        """Return what was done, for one of its requests that waits [since, until), and has not been told it yet."""
        if id(timeline) in self._told:
            return []
        stages: list[Told] = []
        for one in self._stages():
            is_open = self._segments is None and one.end == one.start
            start, end = max(one.start, since), until if is_open else min(one.end, until)
            if start < end and (one.explicit or one.stage not in UNNAMED) and not is_gap(one):
                link = self.entry if one.stage == INFERENCE else None
                stages.append((one.stage, start, end, *told(one, self._attributes(one), link)[3:]))
        if stages:
            self._told[id(timeline)] = timeline
            give_accounts(self, timeline)
        return stages

    def _attributes(self, segment: Segment) -> dict[str, Any]:
        size = {ML_BATCH_SIZE: self._size} if segment.stage == INFERENCE else {}
        return {**segment.attributes, **size}

    def _stages(self) -> list[Segment]:
        """Return the segments, of which the last one is open while they are not worked out."""
        if self._segments is not None:
            return self._segments
        with self._lock:
            return self._settle().so_far()

    @guarded
    def settle(self) -> None:
        """Send the inference's span, once all are done that are sure to be in it."""
        if self._calls or not all(item.has_ended or item.is_dropped for item in reversed(self._items)):
            return
        inferences = [one for one in self._work_out() if one.stage == INFERENCE]
        if inferences and self._told and self._sends:
            self._sends.clear()
            self.requests = _origins(self._told.values())
            inferences[0].attributes = self._attributes(inferences[0])
            self._send(inferences)
        self._items, self._before, self._told = [], (), {}  # its maker may keep this for long


def _origins(timelines: Iterable[Timeline | None]) -> list[Origin]:
    return [Origin("", one.entry) for one in timelines if one is not None and one.entry is not None]
