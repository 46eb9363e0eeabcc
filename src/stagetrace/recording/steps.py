"""Functions that work step by step, as their caller iterates: each step is a stage, the time between is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from contextlib import AbstractContextManager

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
