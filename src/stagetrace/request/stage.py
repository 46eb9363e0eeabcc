"""`stagetrace.stage`: a stage that is marked by hand, as a block, or as a function each of whose calls is one.

The class is there a second time in C, in `native/`: that is taken where a C compiler was there at the installation.
"""

from __future__ import annotations

import time
from threading import get_ident, get_native_id
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report
from stagetrace.request.current import recording
from stagetrace.request.marks import Mark
from stagetrace.semconv import ML_MODEL_NAME, ML_MODEL_VERSION
from stagetrace.system.native import native

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeVar

    from stagetrace.request.request import Request

if TYPE_CHECKING:
    F = TypeVar("F", bound=Callable[..., Any])

MAX_NAME = 64
MAX_COMPUTED = 100
LONG_NS = 1_000_000  # shorter blocks are not told apart
# How `stage` takes what it knows of the model, and what spans carry.
_OF_MODEL = {"model": ML_MODEL_NAME, "version": ML_MODEL_VERSION}
NO_NAME = 'a stage has a name: @stagetrace.stage("inference"), not @stagetrace.stage'


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
        self._open: tuple[Request, Mark, int, int, int] | None = None

    def __call__(self, function: F, /) -> F:
        """Return the function with each of its calls this stage."""
        return decorated(type(self), self._name, self._attributes, function)

    def __enter__(self) -> None:
        self._open = _begin(self._name, self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open is not None:
            request, mark, began, computed, thread = self._open
            self._open = None
            try:
                request.end_mark(mark)
                now = time.time_ns()
                if now - began >= LONG_NS and thread == get_ident():
                    note_computed(request, began, now, time.thread_time_ns() - computed)
            except Exception as failure:  # noqa: BLE001 -- as `guarded`, without its price
                report("stagetrace.request.stage", failure)


@guarded
def _begin(name: str, attributes: dict[str, Any]) -> tuple[Request, Mark, int, int, int] | None:
    request = recording()
    if request is None:
        return None
    mark = prepared(name, attributes)
    request.begin_mark(mark)
    return request, mark, time.time_ns(), time.thread_time_ns(), get_ident()


def note_computed(request: Any, began: int, ended: int, computed: int) -> None:
    """Note for how many nanoseconds the calling thread has computed in a block of a stage."""
    before = getattr(request, "computed", ())
    if not request.closed and len(before) < MAX_COMPUTED:
        request.computed = (*before, (began, ended, computed, get_native_id()))


def prepared(name: Any, attributes: dict[str, Any] | None) -> Mark:
    """Return the mark of a block, its name and attributes made such as can be sent."""
    if attributes:
        from stagetrace.request.limits import plain

        if not _OF_MODEL.keys().isdisjoint(attributes):
            known = ((key, value) for key, value in attributes.items() if value is not None or key not in _OF_MODEL)
            attributes = {_OF_MODEL.get(key, key): value for key, value in known}
        attributes = plain(attributes, texts=_OF_MODEL.values())
    return Mark(str(name)[:MAX_NAME] or "stage", attributes)


def decorated(stage: Callable[..., Any], name: Any, attributes: dict[str, Any] | None, function: F) -> F:
    """Return a function with each of its calls such a stage. Raises TypeError for what is no function."""
    from stagetrace.request.steps import decorated

    return decorated(lambda: stage(name, **(attributes or {})), function)


if TYPE_CHECKING:
    stage = _stage
else:
    _in_c = native("stage")
    stage = _stage if _in_c is None else _in_c.stage
