"""Items that requests have put into queues of the service's own, each with the future that its request waits for.

The code that takes an item out of its queue (`consumer.py`) makes a batch of it (`gathered_batch.py`) when it calls a
model. When the future is done, the request receives as its stages what is certain by then. Imports no OpenTelemetry:
patches of libraries ask here in any process.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections import deque
from contextvars import Context
from time import time_ns
from typing import TYPE_CHECKING, Any, Protocol
from weakref import KeyedRef

from stagetrace.guard import guarded, guarded_end
from stagetrace.request.current import current, recording

if TYPE_CHECKING:
    from stagetrace.request.remote_stages import StageReport
    from stagetrace.request.request import Request

BATCH, CONSUMER = "batch", "consumer"  # what a request waits for
MAX_ITEMS = 10_000  # in the queues of a process
MAX_PARTS = 16  # of an object in which a future is looked for
MAX_ERRANDS = 100  # items of one request

# Only requests add to these two, and each queue and model looks at them: while they are empty, that is all they cost.
queued: dict[int, Item] = {}  # by the id of the object in the queue, until it is taken
taken: dict[int, Item] = {}  # by the id of the future, until that is done


class ItemsBatch(Protocol):
    """The batch that an item is in, as far as the item needs it."""

    @property
    def is_known(self) -> bool:
        """Whether work was done for the batch, and for all of it."""

    def was_of(self, consumer: int) -> bool:
        """Return whether this consumer has worked for it, and does so no longer."""

    def end_calls(self) -> None:
        """Count no more calls of models as this batch's."""

    def settle(self) -> None:
        """Send the span of the inference, if the batch is complete."""

    def stages_for(self, request: Request, since: int, until: int) -> list[StageReport]:
        """Return the stages of the batch for one of its requests, which waited [since, until)."""


class Item:
    """An object that a request has put into a queue, with a future that its consumer will complete."""

    __slots__ = (
        *("_future", "_key", "_open"),
        *("batch", "is_uncertain", "put_at", "since", "taken_at", "taken_by", "request", "until"),
    )

    is_taken = False  # as `Job` of awaited_futures.py has it

    def __init__(self, request: Request, thing: Any, future: Any) -> None:
        self.request: Request | None = request
        self.put_at = time_ns()
        self.since = 0  # when the request began to wait; 0 while it was not seen to wait
        self.until = 0  # when it stopped to wait; 0 unless it stopped before the future was done
        self.taken_at = 0
        self.batch: ItemsBatch | None = None
        self.is_uncertain = False  # whether it is in the batch
        self.taken_by: Request | None = None  # for which the code worked that took it
        self._key = ""
        self._open = [True]  # the thread that takes this out ends the item
        self._future = KeyedRef(future, _forget, (id(thing), id(future)))
        queued[id(thing)] = self

    @property
    def is_open(self) -> bool:
        """Whether the request may still wait for it."""
        future = self._future() if self._open else None
        return future is not None and not future.done()

    @property
    def has_ended(self) -> bool:
        """Whether the request has received its stages, or never will."""
        return not self._open

    @property
    def is_done(self) -> bool:
        """Whether its future has a result, and was not cancelled by the request."""
        future = self._future()
        return future is not None and future.done() and not future.cancelled()

    def has_started(self, request: Request) -> bool:
        """Return whether this request waits for it, and code that the request started has taken it."""
        return self.request is request and self.taken_by is request and bool(self.since)

    def waits_for(self, future: Any) -> bool:
        """Return whether the request waits for this future."""
        return self._future() is future

    @guarded
    def check_awaited(self) -> None:
        """Begin the wait if the request awaits asyncio's future by now, one turn of the loop after the put."""
        if self._is_awaited():
            self.begin_wait(self.put_at)
        elif not self.since:
            self.forget()

    def _is_awaited(self) -> bool:
        callbacks = getattr(self._future(), "_callbacks", None)
        return any(map(self._is_waiter, callbacks or ()))

    def _is_waiter(self, entry: tuple[Any, Context]) -> bool:
        """Return whether a callback of the future is asyncio's own, of a task of this request that awaits it."""
        callback, context = entry
        if getattr(callback, "__self__", None) is self or context.get(current, self.request) is not self.request:
            return False
        module = getattr(getattr(callback, "func", callback), "__module__", None)
        return module is None or module.startswith(("asyncio", "_asyncio"))

    @guarded
    def wait_for(self, awaited: Any, _future: Any) -> None:
        """Begin the wait if asyncio's future that stands for this one is awaited by now."""
        if len(awaited._callbacks or ()) > 1:  # the first is that of the chain itself
            self.begin_wait()

    @guarded
    def begin_wait(self, at: int = 0) -> None:
        """Note that the request waits, since `at` (nanoseconds since the epoch; 0: since now)."""
        from stagetrace.request.remote_stages import hand_on

        request = self.request
        self.until = 0
        if self.since or request is None or request.closed or not self._open:
            return
        if request.remote_stages is not None and request.remote_stages.count >= MAX_ERRANDS:
            self.forget()
            return
        at = at or time_ns()
        self._key = hand_on(request, at=at, conclude=self.conclude)
        self.since = at

    @guarded_end
    def end_wait(self, _future: Any = None) -> None:
        """Note that the request waits no longer: either the future is done, or the request has stopped waiting."""
        if recording() is self.request:
            self.until = time_ns()

    def note_taken(self) -> None:
        """Note that code has taken it out of the queue."""
        future = self._future()
        if future is not None and not future.done():
            taken[id(future)] = self
            self.taken_at, self.taken_by = time_ns(), recording()
            if self._is_awaited():  # the consumer may be done before the loop's next turn
                self.begin_wait(self.put_at)

    def mark_uncertain(self) -> None:
        """Note that it is not certain which batch it is in."""
        self.is_uncertain = True
        if self.batch is not None:
            self.batch.settle()

    def forget(self) -> None:
        """Let go of the request."""
        self._open.clear()
        _forget(self._future)
        self.request = self.taken_by = None

    @guarded_end
    def end(self, future: Any) -> None:
        """Give the request the stages that are certain. The future is done, and the request has not gone on yet."""
        self._end(self.until or time_ns(), is_done=not future.cancelled())
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.settle()

    @guarded_end
    def conclude(self) -> None:
        """Do so when the request itself ends. It is locked, so nothing else may be done."""
        future = self._future()
        if future is not None and future.done():
            self._end(self.until or time_ns(), is_done=not future.cancelled())
        elif self.until or self._is_awaited():
            self._end(self.until or time_ns(), is_done=False)
        else:  # when the request stopped waiting is unknown
            self.forget()

    def _end(self, until: int, *, is_done: bool) -> None:
        try:
            self._open.pop()
        except IndexError:  # another thread ends it
            return
        try:
            if self.batch is not None and is_done:
                self.batch.end_calls()
            if self.since and self.request is not None and not self.request.closed:
                self._report(self.request, until, is_done=is_done)
        finally:
            self.forget()

    def _report(self, request: Request, until: int, *, is_done: bool) -> None:
        from stagetrace.request.remote_stages import report_stages

        batch = None if self.is_uncertain else self.batch
        if batch is not None and batch.is_known:
            stages = batch.stages_for(request, self.since, until)
            if stages:
                report_stages(self._key, BATCH, stages[0][1], stages, is_over=True)
        elif self._waited_for_consumer(request, is_done=is_done):
            report_stages(self._key, CONSUMER, min(self.taken_at or until, until), (), is_over=True)

    def _waited_for_consumer(self, request: Request, *, is_done: bool) -> bool:
        """Return whether it certainly was in its queue until a consumer took it, or until now."""
        if request.remote_stages is None or request.remote_stages.were_taken_up_since(
            self.since
        ):  # by `stagetrace.batch`, say
            return False
        if not self.taken_at:
            return not is_done  # if it is done, it was taken unseen
        return self.taken_by is None or self.taken_by.is_batch  # else a request took it, as a connection of its pool


def _forget(future: KeyedRef[Any, Any]) -> None:
    """Remove an item whose future is done, or was deleted."""
    thing, number = future.key
    item = queued.get(thing)
    if item is not None and item._future is future:
        del queued[thing]
    item = taken.pop(number, None)
    if item is not None:
        item._open.clear()


def future_in(thing: Any) -> Any:
    """Return the one pending future that an object holds as an element, a value or an attribute; None if not just one.

    A tuple that begins with a context is a call for a thread of anyio: its patch records that wait.
    """
    if type(thing) is tuple and thing and type(thing[0]) is Context:
        return None
    modules: Any = sys.modules.get("asyncio"), sys.modules.get("concurrent.futures")
    kinds = tuple(module.Future for module in modules if module is not None)
    tasks = getattr(modules[0], "Task", ())
    found: list[Any] = [part for part in parts_of(thing) if isinstance(part, kinds) and not isinstance(part, tasks)]
    return found[0] if len(found) == 1 and not found[0].done() else None


def parts_of(thing: Any) -> list[Any]:
    """Return the parts of an object, as the garbage collector knows them: that runs no code of the service."""
    if isinstance(thing, tuple | list | dict):
        return gc.get_referents(thing) if len(thing) <= MAX_PARTS else []
    if isinstance(thing, deque | set | frozenset):
        return []
    parts = gc.get_referents(thing)
    attributes = [part for part in parts if type(part) is dict and len(part) <= MAX_PARTS]
    return [thing, *parts, *(value for one in attributes for value in one.values())]


# --- Futures for which a request waits: in a thread, or as a coroutine by asyncio's future that is chained to them.

JOB = "_stagetrace_job"  # on a future: the Job that it stands for
_originals: list[Any] = []  # asyncio's own function, once that is wrapped


class Job(Protocol):
    """Work of a request with a future, which waits to be taken by a thread of a pool, or by a consumer."""

    is_taken: bool

    def wait_for(self, awaited: Any, future: Any) -> None:
        """Begin the wait if asyncio's future `awaited`, which stands for `future`, is awaited by now."""


def patch_asyncio() -> None:
    """Wrap the function that chains asyncio's futures to a pool's, once both are used: most use only asyncio."""
    futures: Any = sys.modules.get("asyncio.futures")
    if futures is not None and not _originals:
        _originals.append(futures._chain_future)
        futures._chain_future = _chaining(futures._chain_future)


def _chaining(original: Any) -> Any:
    @functools.wraps(original)
    def chain_future(source: Any, destination: Any) -> None:
        original(source, destination)
        job = getattr(source, JOB, None)
        if job is not None and not job.is_taken:
            _check_soon(job, destination, source)

    return chain_future


@guarded
def _check_soon(job: Job, awaited: Any, future: Any) -> None:
    """Check when the running coroutine yields to the loop, whether a coroutine waits for the future."""
    awaited.get_loop().call_soon(job.wait_for, awaited, future)
