"""Where a request's marks are noted, and the marking of a stage by hand: the calls that a request makes most.

The classes here are the reference. `native/marks.c` has the same for a fraction of the CPU where a C compiler was there
at the installation (docs/decisions/011).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report
from stagetrace.native import native
from stagetrace.recording.current_record import recording
from stagetrace.semconv import ML_MODEL_NAME, ML_MODEL_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import TypeVar

    from stagetrace.recording.record import RequestRecord

    F = TypeVar("F", bound=Callable[..., Any])
    # time in nanoseconds since the epoch, what happens, the activity or mark that it happens to, attributes
    Event = tuple[int, int, Any, Mapping[str, Any] | None]

# What a noted event may be: the begin and end of an activity, of a Mark.
BEGIN, END, BEGIN_MARK, END_MARK = range(4)
MAX_LOG = 1_000
MAX_NAME = 64
# How `stage` takes what it knows of the model, and what spans carry.
_OF_MODEL = {"model": ML_MODEL_NAME, "version": ML_MODEL_VERSION}


NO_NAME = 'a stage has a name: @stagetrace.stage("inference"), not @stagetrace.stage'


class _Mark:
    """One explicit `with stage(name)` block; an object, so that the same name can be open twice."""

    __slots__ = ("attributes", "stage")

    def __init__(self, stage: str, attributes: Mapping[str, Any] | None = None) -> None:
        self.stage = stage
        self.attributes = attributes


class _Marks:
    """The marks of one request, each with its time, until `closed`."""

    # Until something happens these are the class's: each request has marks.
    _log: list[Event]  # appended to without a lock
    clock: Callable[[], int] | None = None  # the wall clock
    bound = False  # whether there is an entry span for them to tile
    closed = False

    def __new__(cls, *_args: Any, **_named: Any) -> Any:
        self = object.__new__(cls)
        self._log = []
        return self

    def enter(self, activity: str, attributes: Mapping[str, Any] | None = None, at: int | None = None) -> None:
        """Note that an activity of PRIORITY begins; activities of one kind may overlap and then count once."""
        if not self.closed:
            log = self._log
            log.append((at or self._now(), BEGIN, activity, attributes))
            if len(log) > MAX_LOG:
                self._shorten()

    def leave(self, activity: str, at: int | None = None) -> None:
        """Note that an activity ends."""
        if not self.closed:
            self._log.append((at or self._now(), END, activity, None))

    def begin_mark(self, mark: Mark, /) -> None:
        """Note that an explicit stage begins; the latest one still open wins."""
        if not self.closed:
            log = self._log
            log.append((self._now(), BEGIN_MARK, mark, mark.attributes))
            if len(log) > MAX_LOG:
                self._shorten()

    def end_mark(self, mark: Mark, /) -> None:
        """Note that an explicit stage ends."""
        if not self.closed:
            self._log.append((self._now(), END_MARK, mark, None))

    def _now(self) -> int:
        return time.time_ns() if self.clock is None else self.clock()

    def _shorten(self) -> None:
        """Work out the stages that the marks so far make up, and forget the marks."""
        raise NotImplementedError


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
        self._open: tuple[RequestRecord, Mark] | None = None

    def __call__(self, function: F, /) -> F:
        """Return the function with each of its calls this stage."""
        return decorated(type(self), self._name, self._attributes, function)

    def __enter__(self) -> None:
        self._open = _begin(self._name, self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open is not None:
            timeline, mark = self._open
            self._open = None
            try:
                timeline.end_mark(mark)
            except Exception as failure:  # noqa: BLE001 -- as `guarded`, without its price
                report("stagetrace.recording.stage", failure)


@guarded
def _begin(name: str, attributes: dict[str, Any]) -> tuple[RequestRecord, Mark] | None:
    timeline = recording()
    if timeline is None:
        return None
    mark = prepared(name, attributes)
    timeline.begin_mark(mark)
    return timeline, mark


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
