"""Where a late request stands: on the stack of the thread, greenlet or coroutine that works for it (docs/stalls.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.recording.current_record import current
from stagetrace.recording.working import threads_of, workers_of
from stagetrace.sla.code_paths import application_place
from stagetrace.sources.awaited import Tasks
from stagetrace.sources.coroutines import of_coroutine
from stagetrace.sources.stacks import (
    MAX_KEPT,
    from_entry,
    of_frame,
    of_greenlet,
    of_request,
    of_threads,
    waits_for_thread,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Context
    from types import FrameType

    from stagetrace.recording.record import RequestRecord
    from stagetrace.recording.timer import Holder
    from stagetrace.sources.stacks import Stack


def of_holder(record: RequestRecord, holder: Holder, *, in_task: Any = None) -> Stack:
    """Return the stack of a request if the thread that had the GIL worked for it then; else an empty one.

    `in_task` is the coroutine of the task that runs now and ends the request.
    """
    places = holder.places()
    coroutines = [one for one in (record.work, in_task, *workers_of(record)) if hasattr(type(one), "cr_frame")]
    if coroutines:
        found = (holder.index_of(one) for one in coroutines)
        at = max((one for one in found if one is not None), default=None)
        if at is not None:
            return from_entry(places) or tuple(places[: min(at + 1, MAX_KEPT)])
    if holder.thread in threads_of(record):
        return from_entry(places) or tuple(places[:MAX_KEPT])
    if coroutines or record.greenlet is not None or holder.thread != record.thread:
        return ()
    return from_entry(places) or (tuple(places[:MAX_KEPT]) if record.exchange is None else ())


def _has_code(stack: Stack) -> bool:
    return application_place(stack) is not None


class RequestStacks:
    """The stacks of late requests at one look of the sampler, which goes through the tasks of event loops once."""

    def __init__(self) -> None:
        self._tasks = Tasks()

    def of(self, record: RequestRecord) -> tuple[Stack, bool, int]:
        """Return the stack of a request, whether its code runs (and is no coroutine that awaits), and its thread.

        Empty where that is unknown, as while it waits for a thread. Of several workers that is the first to have begun,
        unless it waits for another one.
        """
        frames = of_threads()  # for each request anew: the threads run meanwhile
        stack, waits, runs = self._own(record, frames)
        thread = record.thread
        for worker in (*workers_of(record), *(() if record.batch is None else workers_of(record.batch))):
            if stack and not waits:
                break
            found = self._of_worker(worker, record, frames)
            if found[0]:
                stack, waits, runs = found
                thread = worker if type(worker) is int else record.thread
        return stack, runs, thread

    def _own(self, record: RequestRecord, frames: Mapping[int, FrameType]) -> tuple[Stack, bool, bool]:
        """Return where the code stands that the request came in on, whether it waits, and whether it runs."""
        frame = frames.get(record.thread)
        if record.work is not None:
            return self._of_coroutine(record.work, frame, record)
        if record.greenlet is not None:
            stack = of_greenlet(record.greenlet, frame)
        else:
            # Without an adapter of ours no entry is on the stack: OpenTelemetry's instrumentations, by the processor.
            stack = of_frame(frame) if record.exchange is None else of_request(frame)
        return stack, waits_for_thread(stack), True

    def _of_worker(
        self, worker: Any, record: RequestRecord, frames: Mapping[int, FrameType]
    ) -> tuple[Stack, bool, bool]:
        if type(worker) is int:
            stack = of_frame(frames.get(worker))
        elif hasattr(type(worker), "gr_frame"):
            stack = of_greenlet(worker, frames.get(record.thread))
        else:
            return self._of_coroutine(worker, frames.get(record.thread), record)
        return stack, waits_for_thread(stack), True

    def _of_coroutine(self, work: Any, frame: FrameType | None, record: RequestRecord) -> tuple[Stack, bool, bool]:
        def belongs(context: Context) -> bool:
            return context.get(current) is record

        stack, runs = of_coroutine(work, frame, self._tasks, belongs, _has_code)
        return stack, not runs, runs
