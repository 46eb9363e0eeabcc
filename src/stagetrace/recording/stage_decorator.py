"""`@stagetrace.stage(name)`: a function each of whose calls is a stage."""

from __future__ import annotations

import functools
import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from stagetrace.recording.current_record import current, entries

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
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
    """Let each step be the stage: the time of the caller between two steps is no part of it."""

    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps = function(*args, **kwargs)
        step, given = steps.send, None
        while True:
            try:
                with stage():
                    item = step(given)
            except StopIteration as end:
                return end.value
            try:
                step, given = steps.send, (yield item)
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 -- whatever it is, it is thrown into the function
                step, given = steps.throw, error

    return call


def _generated_async(stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
    """Do the same of an asynchronous generator."""

    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = function(*args, **kwargs)
        step, given = steps.asend, None
        while True:
            try:
                with stage():
                    item = await step(given)
            except StopAsyncIteration:
                return
            try:
                step, given = steps.asend, (yield item)
            except GeneratorExit:
                await steps.aclose()
                raise
            except BaseException as error:  # noqa: BLE001
                step, given = steps.athrow, error

    return call


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[..., Callable[..., Any]]], ...] = (
    (inspect.isasyncgenfunction, _generated_async),
    (inspect.iscoroutinefunction, _awaited),
    (inspect.isgeneratorfunction, _generated),
)
