"""What requests have put into queues of the service's own, each with the future that its request waits for.

An item goes from the request to whoever takes it out of the queue, by the context of that code, and from there to the
batch (`gathered_batch.py`) that this code calls a model for. What the request is then told, as its future is done, is
only what is sure. Imports no OpenTelemetry: hooks of libraries ask here in any process.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from contextlib import suppress
from contextvars import Context, ContextVar
from time import time_ns
from typing import TYPE_CHECKING, Any
from weakref import KeyedRef

from stagetrace.guard import guarded, guarded_end
from stagetrace.recording.current_timeline import current, recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.batching.gathered_batch import Gathered
    from stagetrace.recording.timeline import Timeline

BATCH, CONSUMER = "batch", "consumer"  # what was waited for
MAX_ITEMS = 10_000  # that wait in queues, of the process
MAX_GATHERED = 1_024  # by one consumer
CLEARED_AT = 64
MAX_PARTS = 16
MAX_ERRANDS = 100  # of one request

# Both are filled by requests alone, and looked at by each queue and each model: empty, they cost no more than that.
queued: dict[int, Item] = {}  # by the id of what was put, until it is taken
taken: dict[int, Item] = {}  # by the id of the future, until that is done

_collected: ContextVar[tuple[Item, ...]] = ContextVar("stagetrace.collected", default=())  # what this code has taken


class Item:
    """What a request has put into a queue, with a future that is to be done by whoever takes it."""

    __slots__ = (
        *("_future", "_key", "_open"),
        *("batch", "is_dropped", "put_at", "since", "taken_at", "taken_in", "timeline", "until"),
    )

    is_taken = False  # as a job of `instrumentation.executors` has it, for those who wait for a future

    def __init__(self, timeline: Timeline, thing: Any, future: Any) -> None:
        self.timeline: Timeline | None = timeline
        self.put_at = time_ns()
        self.since = 0  # since when the request waits; 0 while it is not seen to
        self.until = 0  # until when it did; 0 while it is not known to have given up
        self.taken_at = 0
        self.batch: Gathered | None = None
        self.is_dropped = False  # from the batch, since it is not sure to be in it
        self.taken_in: Timeline | None = None  # for whom the code worked that has taken it
        self._key = ""
        self._open = [True]  # who takes it out ends this
        self._future = KeyedRef(future, _forget, (id(thing), id(future)))
        queued[id(thing)] = self

    @property
    def is_open(self) -> bool:
        """Whether the request may still wait for it."""
        future = self._future() if self._open else None
        return future is not None and not future.done()

    @property
    def has_ended(self) -> bool:
        """Whether the request has been told, or will not be."""
        return not self._open

    @property
    def is_answered(self) -> bool:
        """Whether its future is done, and not given up by the request."""
        future = self._future()
        return future is not None and future.done() and not future.cancelled()

    def has_started(self, request: Timeline) -> bool:
        """Return whether this request waits for it, and it was taken in that one's name: by what it has started."""
        return self.timeline is request and self.taken_in is request and bool(self.since)

    def waits_for(self, future: Any) -> bool:
        """Return whether this is the future."""
        return self._future() is future

    @guarded
    def look(self) -> None:
        """Begin to wait if by now, a turn of the loop after it was put, the request awaits asyncio's future."""
        if self._is_awaited():
            self.begin_wait(self.put_at)
        elif not self.since:
            self.forget()

    def _is_awaited(self) -> bool:
        callbacks = getattr(self._future(), "_callbacks", None)
        return any(map(self._is_waiter, callbacks or ()))

    def _is_waiter(self, entry: tuple[Any, Context]) -> bool:
        """Return whether a callback of the future's is asyncio's own, for a task of this request that awaits it."""
        callback, context = entry
        if getattr(callback, "__self__", None) is self or context.get(current, self.timeline) is not self.timeline:
            return False
        module = getattr(getattr(callback, "func", callback), "__module__", None)
        return module is None or module.startswith(("asyncio", "_asyncio"))

    @guarded
    def wait_for(self, awaited: Any, _future: Any) -> None:
        """Begin to wait if, by now, somebody awaits asyncio's future that stands for this one."""
        if len(awaited._callbacks or ()) > 1:  # the first is that of the chain itself
            self.begin_wait()

    @guarded
    def begin_wait(self, at: int = 0) -> None:
        """Note that the request waits, from now or then on."""
        from stagetrace.recording.remote_stages import hand_on

        timeline = self.timeline
        self.until = 0
        if self.since or timeline is None or timeline.closed or not self._open:
            return
        if timeline.errands is not None and timeline.errands.count >= MAX_ERRANDS:
            self.forget()
            return
        at = at or time_ns()
        self._key = hand_on(timeline, at=at, conclude=self.conclude)
        self.since = at

    @guarded_end
    def end_wait(self, _future: Any = None) -> None:
        """Note that the request, if it is one that has, waits no longer; if its future is not done, it has given up."""
        if recording() is self.timeline:
            self.until = time_ns()

    def take(self) -> None:
        """Note that it was taken out of the queue."""
        future = self._future()
        if future is not None and not future.done():
            taken[id(future)] = self
            self.taken_at, self.taken_in = time_ns(), recording()
            if self._is_awaited():  # who has taken it may be done before the loop's next turn
                self.begin_wait(self.put_at)

    def drop(self) -> None:
        """Note that it is not sure which batch it is in."""
        self.is_dropped = True
        if self.batch is not None:
            self.batch.settle()

    def forget(self) -> None:
        """Have nothing to do with the request any more."""
        self._open.clear()
        _forget(self._future)
        self.timeline = self.taken_in = None

    @guarded_end
    def end(self, future: Any) -> None:
        """Tell the request what is sure, as its future is done, before the request goes on."""
        self._end(self.until or time_ns(), is_answered=not future.cancelled())
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.settle()

    @guarded_end
    def conclude(self) -> None:
        """Tell it as the request ends, and do no more: the request's timeline is locked."""
        future = self._future()
        if future is not None and future.done():
            self._end(self.until or time_ns(), is_answered=not future.cancelled())
        elif self.until or self._is_awaited():
            self._end(self.until or time_ns(), is_answered=False)
        else:  # nobody knows when it has given up
            self.forget()

    def _end(self, until: int, *, is_answered: bool) -> None:
        try:
            self._open.pop()
        except IndexError:  # another thread has
            return
        try:
            if self.batch is not None and is_answered:
                self.batch.end_calls()
            if self.since and self.timeline is not None and not self.timeline.closed:
                self._tell(self.timeline, until, is_answered=is_answered)
        finally:
            self.forget()

    def _tell(self, timeline: Timeline, until: int, *, is_answered: bool) -> None:
        from stagetrace.recording.remote_stages import tell

        batch = None if self.is_dropped else self.batch
        if batch is not None and batch.is_known:
            stages = batch.stages_for(timeline, self.since, until)
            if stages:
                tell(self._key, BATCH, stages[0][1], stages, is_over=True)
        elif self._lay_for_consumer(timeline, is_answered=is_answered):
            tell(self._key, CONSUMER, min(self.taken_at or until, until), (), is_over=True)

    def _lay_for_consumer(self, timeline: Timeline, *, is_answered: bool) -> bool:
        """Return whether it is known to have lain in its queue until it was taken, or until now."""
        if timeline.errands is None or timeline.errands.were_taken_up_since(self.since):  # by `stagetrace.batch`, say
            return False
        if not self.taken_at:
            return not is_answered  # else it was taken unseen
        return self.taken_in is None or self.taken_in.is_batch  # else by another request: a connection for its pool


def _forget(future: KeyedRef[Any, Any]) -> None:
    """Let go of an item whose future is done, or gone."""
    thing, number = future.key
    item = queued.get(thing)
    if item is not None and item._future is future:
        del queued[thing]
    item = taken.pop(number, None)
    if item is not None:
        item._open.clear()


def future_in(thing: Any) -> Any:
    """Return the one future, not done yet, that something holds: as an element, a value or an attribute; else None.

    What holds a context, too, is a call for a thread of anyio's: that is the request's, and its wait seen there.
    """
    if type(thing) is tuple and thing and type(thing[0]) is Context:
        return None
    modules: Any = sys.modules.get("asyncio"), sys.modules.get("concurrent.futures")
    kinds = tuple(module.Future for module in modules if module is not None)
    tasks = getattr(modules[0], "Task", ())
    found: list[Any] = [part for part in _parts(thing) if isinstance(part, kinds) and not isinstance(part, tasks)]
    return found[0] if len(found) == 1 and not found[0].done() else None


def _parts(thing: Any) -> list[Any]:
    """Return what something consists of; asks the garbage collector, which runs no code of theirs."""
    if isinstance(thing, tuple | list | dict):
        return gc.get_referents(thing) if len(thing) <= MAX_PARTS else []
    if isinstance(thing, deque | set | frozenset):
        return []
    parts = gc.get_referents(thing)
    attributes = [part for part in parts if type(part) is dict and len(part) <= MAX_PARTS]
    return [thing, *parts, *(value for one in attributes for value in one.values())]


def take(thing: Any) -> None:
    """Note that what may be an item's has been taken out of its queue, by the code that runs now."""
    item = queued.get(id(thing))
    if item is None or not any(map(item.waits_for, _parts(thing))):
        return
    del queued[id(thing)]
    item.take()
    task = _task()
    if task is not None and _only_fetches(task):
        context = _context_of_who_awaits(task)
        if context is not None:
            with suppress(RuntimeError):  # it is shared with what runs now
                context.run(_collect, item)
    elif task is not None or not _is_of_a_pool():
        _collect(item)


def _collect(item: Item) -> None:
    items = _collected.get()
    if len(items) % CLEARED_AT == CLEARED_AT - 1:
        items = tuple(one for one in items if one.is_open)
    if len(items) < MAX_GATHERED:
        _collected.set((*items, item))


def pass_on(thing: Any) -> None:
    """Note that who has taken an item may have put it into another queue: somebody else will call the model."""
    item = taken.get(id(future_in(thing)))
    if item is not None:
        item.drop()


def _task() -> Any:
    asyncio = sys.modules.get("asyncio")
    return asyncio.current_task() if asyncio is not None and asyncio._get_running_loop() is not None else None


def _only_fetches(task: Any) -> bool:
    """Return whether a task does nothing but `Queue.get()`, as `wait_for` makes one up to Python 3.11."""
    return getattr(task.get_coro(), "cr_code", None) is sys.modules["asyncio"].Queue.get.__code__


def _context_of_who_awaits(future: Any) -> Context | None:
    """Return the context of the task that waits for a future, itself or, as `wait_for` does, for one that follows."""
    for callback, context in future._callbacks or ():
        follows = next(iter(getattr(callback, "args", None) or ()), None)
        if hasattr(follows, "_callbacks"):
            return _context_of_who_awaits(follows)
        if getattr(callback, "__module__", None) is None or hasattr(getattr(callback, "__self__", None), "get_coro"):
            return context  # type: ignore[no-any-return]
    return None


def _is_of_a_pool() -> bool:
    """Return whether this thread, in which no task runs, works for anybody."""
    pools = sys.modules.get("concurrent.futures.thread")
    if pools is None:
        return False
    thread: Any = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]
    return getattr(thread, "_target", None) is pools._worker


def whose() -> Timeline | None:
    """Return for whom a model that is called now would work: for a request, for a batch that this code has taken."""
    if taken:
        take_up()
    return recording()


@guarded_end
def take_up() -> None:
    """Make what this code has taken a batch, for which it works from now on; to be asked where `taken` holds anything.

    A batch goes on until its first future is done, or its code has taken more. Where the code cannot be understood, as
    where some of a batch is left over, nothing is sure of what it has at hand.
    """
    collected = _collected.get()
    if collected:
        items = tuple(item for item in collected if item.is_open)
        _collected.set(items)
        _take_up(items)


def _take_up(items: tuple[Item, ...]) -> None:
    from stagetrace.instrumentation.batching.gathered_batch import Gathered

    task = _task()
    maker = threading.get_ident() if task is None else id(task)
    timeline = current.get()
    if isinstance(timeline, Gathered) and timeline.is_answered:
        timeline.end_calls()
    open_ = timeline if timeline is not None and not timeline.closed else None
    batch = open_ if isinstance(open_, Gathered) else None
    fresh = [item for item in items if item.batch is None]
    if not fresh:
        if batch is None:  # left over from another batch, or somebody else has them
            for item in items:
                item.drop()
        return
    if batch is not None and batch.maker == maker and not batch.has_begun and not batch.is_running:
        batch.add(fresh)
        return
    if batch is None and open_ is not None and not any(item.has_started(open_) for item in fresh):
        return  # a request's own code, or somebody's who says what it is for
    before = [item for item in items if item.batch is not None and item.batch.was_of(maker)]
    if batch is not None and not batch.is_running:
        batch.end_calls()
        batch.settle()
    current.set(Gathered(fresh, maker, before))


@guarded_end
def gave_away(timeline: Timeline | None, future: Any) -> None:
    """Note what a batch waits for: its maker may go on to take the next one."""
    if timeline is not None and timeline.is_batch:
        getattr(timeline, "futures", []).append(future)


def carry_into(function: Callable[..., Any], timeline: Timeline) -> None:
    """Let what `asyncio.to_thread` gives to a pool, in a context that it has copied before, work for a batch."""
    context = getattr(getattr(function, "func", None), "__self__", None)
    if timeline.is_batch and isinstance(context, Context):
        context.run(current.set, timeline)
