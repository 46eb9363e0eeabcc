"""A call that prepares its input, batch by batch, is the inference but for that preparation."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, switch
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.models.marked import How, Visit, beside, inside
from stagetrace.instrumentation.models.signature import with_signature
from stagetrace.semconv import INFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.models.marked import Describe, Timer
    from stagetrace.request.request import Request

_open: ContextVar[_Call | None] = ContextVar("stagetrace.preparing_call", default=None)


def preparing(
    method: Callable[..., Any], describe: Describe, where: str, timer: Timer | None = None
) -> Callable[..., Any]:
    """Return a method whose outermost call in a request is the inference, from the end of its first `preparation` on.

    It is that as a whole if it prepares nothing. `describe`, `where` and `timer` are as in `marked`.
    """
    how = How(describe, INFERENCE, switch(where), is_method=True, timer=timer)

    def call(*args: Any, **kwargs: Any) -> Any:
        request = None if how.patch.off or inside.get() else current_work()
        if request is None:
            return beside(method, how, args, kwargs)
        made = _Call(how, request, args, kwargs)
        is_inside, is_open = inside.set(True), _open.set(made)
        try:
            return method(*args, **kwargs)
        finally:
            _open.reset(is_open)
            inside.reset(is_inside)
            made.end()

    return with_signature(functools.wraps(method)(call), method)


def preparation(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that is preprocessing within a call that is `preparing`."""

    @functools.wraps(method)
    def prepare(*args: Any, **kwargs: Any) -> Any:
        call = _open.get()
        if call is None:
            return method(*args, **kwargs)
        call.interrupt()
        result = method(*args, **kwargs)
        call.go_on()
        return result

    return prepare


class _Call:
    """The inference of one call, in as many visits as it has batches."""

    __slots__ = ("_args", "_attributes", "_began", "_how", "_is_prepared", "_kwargs", "_request", "_visit")

    def __init__(self, how: How, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._how = how
        self._request = request
        self._args = args
        self._kwargs = kwargs
        self._attributes: list[dict[str, Any]] = []  # once they are known
        self._began = time_ns()
        self._is_prepared = False
        self._visit: Visit | None = None

    @guarded
    def interrupt(self) -> None:
        """Note that a preparation begins."""
        self._is_prepared = True
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.end()

    @guarded
    def go_on(self) -> None:
        """Note that a preparation has ended."""
        self._visit = Visit(self._how, self._request, self._args, self._kwargs, self._attributes)

    @guarded_end
    def end(self) -> None:
        """End it."""
        self.interrupt() if self._is_prepared else self._note_whole()

    def _note_whole(self) -> None:
        request, ended = self._request, time_ns()
        request.is_unsorted = True  # what has happened meanwhile is noted already
        request.enter(INFERENCE, self._how.attributes(self._args, self._kwargs), self._began)
        request.leave(INFERENCE, ended)
