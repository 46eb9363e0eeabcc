"""The marks of a request, and the marking of a stage by hand: a request makes these calls most often.

The classes here, Mark and Stages are there a second time in C, in `native/`, for a fraction of the CPU: those are taken
where a C compiler was there at the installation (docs/decisions/011).
"""

from __future__ import annotations

import time
from operator import itemgetter
from threading import RLock, get_ident, get_native_id
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report
from stagetrace.native import native
from stagetrace.recording.current_record import recording
from stagetrace.recording.tiler import BEGIN, BEGIN_MARK, END, END_MARK, MAX_VISITS, PRIORITY, Tiler
from stagetrace.recording.tiler import Mark as _Mark
from stagetrace.semconv import ML_MODEL_NAME, ML_MODEL_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import TypeVar

    from opentelemetry.trace import SpanContext

    from stagetrace.recording.record import RequestRecord
    from stagetrace.recording.segments import Segment
    from stagetrace.recording.stages import Stages
    from stagetrace.recording.tiler import Event

    F = TypeVar("F", bound=Callable[..., Any])

MAX_LOG = 1_000
MAX_NAME = 64
MAX_COMPUTED = 100
LONG_NS = 1_000_000  # shorter blocks get no CPU samples
# The arguments of `stage` that name the model, and their attributes.
_time_of = itemgetter(0)
_OF_MODEL = {"model": ML_MODEL_NAME, "version": ML_MODEL_VERSION}


NO_NAME = 'a stage has a name: @stagetrace.stage("inference"), not @stagetrace.stage'


class _Marks:
    """The marks of one request, each with its time, until it is `closed`; then the stages that they make up.

    A mark is only noted. The stages are worked out when they are needed: at the close, or when a child span needs its
    parent. Until then a record is two objects and a tuple for each mark: objects that are alive while requests overlap
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
            self.closed, self._tiler = True, None  # a context of the service may keep this record for long
            return tiler.close(min(now, end), start, end, is_unsorted=self.is_unsorted)

    def drop(self) -> None:
        """Take no more marks, and forget those noted."""
        self.closed = True
        self._log.clear()
        self._tiler = None


class _stage:  # noqa: N801 -- reads as a statement: `with stagetrace.stage("preprocess"):`
    """Make the block, or each call of a function, a stage of the current request; outside of one it does nothing.

    `name` is one of the stages of `stagetrace.semconv.STAGES` or a name of your own, at most 64 characters;
    `attributes` (str, bool, int, float; anything else as its text) go on the stage span. `model` and `version` are
    `ml.model.name` and `ml.model.version` there, and of the first `inference` on the entry span, too. What is marked by
    hand wins over what is inferred, and the innermost mark wins. Works in threads and tasks that carry the request's
    context. A block never raises.

    As a decorator it takes functions, `async` ones, and generators of both kinds, of which each step is the stage and
    what their caller does in between is not.
    """

    __slots__ = ("_attributes", "_name", "_open")

    def __init__(self, name: str, **attributes: Any) -> None:
        if callable(name):
            raise TypeError(NO_NAME)
        self._name = name
        self._attributes = attributes
        self._open: tuple[RequestRecord, Mark, int, int, int] | None = None

    def __call__(self, function: F, /) -> F:
        """Return the function with each of its calls this stage."""
        return decorated(type(self), self._name, self._attributes, function)

    def __enter__(self) -> None:
        self._open = _begin(self._name, self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open is not None:
            record, mark, began, computed, thread = self._open
            self._open = None
            try:
                record.end_mark(mark)
                now = time.time_ns()
                if now - began >= LONG_NS and thread == get_ident():
                    note_computed(record, began, now, time.thread_time_ns() - computed)
            except Exception as failure:  # noqa: BLE001 -- as `guarded`, without its price
                report("stagetrace.recording.stage", failure)


@guarded
def _begin(name: str, attributes: dict[str, Any]) -> tuple[RequestRecord, Mark, int, int, int] | None:
    record = recording()
    if record is None:
        return None
    mark = prepared(name, attributes)
    record.begin_mark(mark)
    return record, mark, time.time_ns(), time.thread_time_ns(), get_ident()


def note_computed(record: Any, began: int, ended: int, computed: int) -> None:
    """Note for how many nanoseconds the calling thread has computed in a block of a stage."""
    before = getattr(record, "computed", ())
    if not record.closed and len(before) < MAX_COMPUTED:
        record.computed = (*before, (began, ended, computed, get_native_id()))


def prepared(name: Any, attributes: dict[str, Any] | None) -> Mark:
    """Return the mark of a block, its name and attributes made such as can be sent."""
    if attributes:
        from stagetrace.recording.limits import plain

        if not _OF_MODEL.keys().isdisjoint(attributes):
            known = ((key, value) for key, value in attributes.items() if value is not None or key not in _OF_MODEL)
            attributes = {_OF_MODEL.get(key, key): value for key, value in known}
        attributes = plain(attributes, texts=_OF_MODEL.values())
    return Mark(str(name)[:MAX_NAME] or "stage", attributes)


def decorated(stage: Callable[..., Any], name: Any, attributes: dict[str, Any] | None, function: F) -> F:
    """Return a function with each of its calls such a stage. Raises TypeError for what is no function."""
    from stagetrace.recording.stage_decorator import decorated

    return decorated(lambda: stage(name, **(attributes or {})), function)


if TYPE_CHECKING:
    Mark = _Mark
    Marks = _Marks
    stage = _stage
else:
    _in_c = native("marks")
    Mark, Marks, stage = (_Mark, _Marks, _stage) if _in_c is None else (_in_c.Mark, _in_c.Marks, _in_c.stage)
