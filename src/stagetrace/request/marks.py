"""The marks of a request: the calls that a request makes most often.

The classes here, Mark and Stages are there a second time in C, in `native/`, for a fraction of the CPU: those are taken
where a C compiler was there at the installation (docs/decisions/011).
"""

from __future__ import annotations

import time
from operator import itemgetter
from threading import RLock
from typing import TYPE_CHECKING, Any

from stagetrace.request.tiler import BEGIN, BEGIN_MARK, END, END_MARK, MAX_VISITS, PRIORITY, Tiler
from stagetrace.request.tiler import Mark as _Mark
from stagetrace.system.native import native

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stagetrace.request.stages import Segment, Stages
    from stagetrace.request.tiler import Event
    from stagetrace.tracing.span_context import SpanContext

MAX_LOG = 1_000
_time_of = itemgetter(0)


class _Marks:
    """The marks of one request, each with its time, until it is `closed`; then the stages that they make up.

    A mark is only noted. The stages are worked out when they are needed: at the close, or when a child span needs its
    parent. Until then a request is two objects and a tuple for each mark: objects that are alive while requests overlap
    trigger the garbage collector (docs/decisions/009).
    """

    # Until something happens these are the class's: each request has marks.
    _log: list[Event]  # appended to without a lock
    _working: Any  # guards _tiler: a lock that one thread may take twice
    started = 0  # when the first stage begins, in nanoseconds since the epoch
    clock: Callable[[], int] | None = None  # the wall clock
    bound = False  # whether there is an entry span for them to tile
    closed = False
    is_unsorted = False  # the marks are not in the order of time: some were reported afterwards
    limit = MAX_VISITS  # more are summed by stage while the request runs
    _tiler: Tiler | None = None
    _is_at_work = False

    def __new__(cls, *_args: Any, **_named: Any) -> Any:
        self = object.__new__(cls)
        self._log = []
        self._working = RLock()
        return self

    @property
    def cuts(self) -> Sequence[int]:
        """The times across which no visits are summed."""
        return ()

    def enter(self, activity: str, attributes: Mapping[str, Any] | None = None, at: int | None = None) -> None:
        """Note that an activity of PRIORITY begins; activities of one kind may overlap and then count once."""
        if activity not in PRIORITY:
            raise KeyError(activity)
        self._note(BEGIN, activity, attributes, at)

    def leave(self, activity: str, at: int | None = None) -> None:
        """Note that an activity ends."""
        if activity not in PRIORITY:
            raise KeyError(activity)
        self._note(END, activity, None, at)

    def begin_mark(self, mark: Mark, at: int | None = None) -> None:
        """Note that an explicit stage begins; the latest one still open wins."""
        self._note(BEGIN_MARK, mark, mark.attributes, at)

    def end_mark(self, mark: Mark, at: int | None = None) -> None:
        """Note that an explicit stage ends."""
        self._note(END_MARK, mark, None, at)

    def _note(self, kind: int, what: Any, attributes: Mapping[str, Any] | None, at: int | None) -> None:
        if self.closed:
            return
        log = self._log
        log.append((at or self._now(), kind, what, attributes))
        if len(log) > MAX_LOG:
            with self._working:
                self._work_out()

    def _now(self) -> int:
        return time.time_ns() if self.clock is None else self.clock()

    def _work_out(self) -> Tiler | None:
        """Turn what has been noted into stages; None in the middle of doing so, when a finaliser asks."""
        if self._is_at_work:
            return None
        self._is_at_work = True
        try:
            tiler = self._tiler
            if tiler is None:
                tiler = self._tiler = Tiler(self.started, self.limit)
            log = self._log
            events = log[:]
            del log[: len(events)]  # others may append meanwhile
            if self.is_unsorted:
                events.sort(key=_time_of)
            tiler.take(events)
            tiler.shorten(self.cuts)
            return tiler
        finally:
            self._is_at_work = False

    def open_context(self, entry: SpanContext, make: Callable[[SpanContext], SpanContext]) -> SpanContext | None:
        """Return the open stage's context, made of the entry span's if it has none yet.

        None where that stage will be no span of its own.
        """
        with self._working:
            tiler = None if self.closed else self._work_out()
            segment = None if tiler is None else tiler.open
            if segment is None:
                return None
            if segment.context is None:
                segment.context = make(entry)
            return segment.context

    def so_far(self) -> list[Segment]:
        """Return the segments until now, the last of which is open; one without a name may get any yet."""
        with self._working:
            tiler = self._work_out()
            return [] if tiler is None else tiler.so_far()

    def tile(self, start: int, end: int) -> Stages:
        """Take no more marks, and return the stages that tile [start, end); none if that interval is empty."""
        now = self._now()
        with self._working:
            tiler = self._work_out()
            if tiler is None:
                raise RuntimeError("the stages of this request are being worked out")
            self.closed, self._tiler = True, None  # a context of the service may keep this request for long
            return tiler.close(min(now, end), start, end, is_unsorted=self.is_unsorted)

    def drop(self) -> None:
        """Take no more marks, and forget those noted."""
        self.closed = True
        self._log.clear()
        self._tiler = None


if TYPE_CHECKING:
    Mark = _Mark
    Marks = _Marks
else:
    _in_c = native("marks")
    Mark, Marks = (_Mark, _Marks) if _in_c is None else (_in_c.Mark, _in_c.Marks)
