"""`@stagetrace.stage(name)`: a function each of whose calls is a stage."""

from __future__ import annotations

import functools
import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from stagetrace.recording.current_record import current, entries
from stagetrace.recording.steps import generated, generated_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Stage = Callable[[], AbstractContextManager[None]]

F = TypeVar("F", bound="Callable[..., Any]")
_NOTHING = nullcontext()


def decorated(stage: Stage, function: F) -> F:
    """Return `function` with each call a stage that `stage` makes: another one, since calls may overlap.

    It keeps its signature, its kind, and what it returns and raises. Raises TypeError for what is no function.
    """
    if isinstance(function, staticmethod | classmethod | property):
        raise TypeError(f"put @stagetrace.stage(...) below @{type(function).__name__}, next to the function")
    if isinstance(function, type) or not callable(function):
        what = "class" if isinstance(function, type) else type(function).__name__
        raise TypeError(f"@stagetrace.stage(...) takes a function, not a {what}: mark its methods")
    wrap = next((wrap for is_kind, wrap in _KINDS if is_kind(function)), _called)

    def recorded() -> AbstractContextManager[None]:
        return _NOTHING if current.get() is None and not entries else stage()

    return functools.wraps(function)(wrap(recorded, function))  # type: ignore[return-value]


def _called(stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with stage():
            return function(*args, **kwargs)

    return call


def _awaited(stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with stage():
            return await function(*args, **kwargs)

    return call


def _generated(stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
    return generated(lambda _args, _kwargs: stage, function)


def _generated_async(stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
    return generated_async(lambda _args, _kwargs: stage, function)


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[..., Callable[..., Any]]], ...] = (
    (inspect.isasyncgenfunction, _generated_async),
    (inspect.iscoroutinefunction, _awaited),
    (inspect.isgeneratorfunction, _generated),
)
