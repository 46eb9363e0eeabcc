"""Functions that work step by step, as their caller iterates: each step is a stage, the time between is not."""

from __future__ import annotations

import functools
import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from stagetrace.request.current import current, entries

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from contextlib import AbstractContextManager

if TYPE_CHECKING:
    # Makes the stage of one step; what it enters as is called with what the step has yielded, unless that is None.
    Stage = Callable[[], AbstractContextManager[Any]]
    StageOf = Callable[[tuple[Any, ...], dict[str, Any]], Stage]  # of a call with these arguments


def generated(stage_of: StageOf, function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Any]:
    """Return a generator function that does what `function` does, with each step a stage."""

    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from each_step(stage_of(args, kwargs), function(*args, **kwargs)))

    return call


def each_step(stage: Stage, steps: Iterator[Any]) -> Generator[Any, Any, Any]:
    """Yield what `steps` yields, with each step a stage; what is sent or thrown reaches it, if it is a generator."""
    send = getattr(steps, "send", None)
    step: Callable[[Any], Any] = (lambda _: next(steps)) if send is None else send
    given: Any = None
    while True:
        try:
            with stage() as see:
                item = step(given)
                if see is not None:
                    see(item)
        except StopIteration as end:
            return end.value
        try:
            step, given = send or step, (yield item)
        except GeneratorExit:
            close = getattr(steps, "close", None)
            if close is not None:
                close()
            raise
        except BaseException as error:
            if not hasattr(steps, "throw"):
                raise
            step, given = steps.throw, error


def generated_async(stage_of: StageOf, function: Callable[..., AsyncGenerator[Any, Any]]) -> Callable[..., Any]:
    """Do as `generated` for an asynchronous generator function."""

    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        stage, steps = stage_of(args, kwargs), function(*args, **kwargs)
        step: Callable[[Any], Any] = steps.asend
        given: Any = None
        while True:
            try:
                with stage() as see:
                    item = await step(given)
                    if see is not None:
                        see(item)
            except StopAsyncIteration:
                return
            try:
                step, given = steps.asend, (yield item)
            except GeneratorExit:
                await steps.aclose()
                raise
            except BaseException as error:  # noqa: BLE001 -- whatever it is, it is thrown into the function
                step, given = steps.athrow, error

    return call


if TYPE_CHECKING:
    StageBlock = Callable[[], AbstractContextManager[None]]

# --- `@stagetrace.stage(name)`: a function each of whose calls is a stage.

F = TypeVar("F", bound="Callable[..., Any]")
_NOTHING = nullcontext()


def decorated(stage: StageBlock, function: F) -> F:
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


def _called(stage: StageBlock, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with stage():
            return function(*args, **kwargs)

    return call


def _awaited(stage: StageBlock, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with stage():
            return await function(*args, **kwargs)

    return call


def _generated(stage: StageBlock, function: Callable[..., Any]) -> Callable[..., Any]:
    return generated(lambda _args, _kwargs: stage, function)


def _generated_async(stage: StageBlock, function: Callable[..., Any]) -> Callable[..., Any]:
    return generated_async(lambda _args, _kwargs: stage, function)


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[..., Callable[..., Any]]], ...] = (
    (inspect.isasyncgenfunction, _generated_async),
    (inspect.iscoroutinefunction, _awaited),
    (inspect.isgeneratorfunction, _generated),
)
