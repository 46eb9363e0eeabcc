"""Functions of a user that a model server calls once a request, of any kind: each call is a `ServedCall`."""

from __future__ import annotations

import functools
import inspect
from contextlib import aclosing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from stagetrace.recording.steps import each_step, generated_async

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator

    from stagetrace.instrumentation.model_servers.served_call import ServedCall

    Begin = Callable[[], ServedCall | None]


def served(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """Return a function of the same kind whose calls `begin` begins; None from it: the call is not recorded.

    A call of a generator goes on until its caller has had the last item, or closes it; each item is a chunk. Nobody but
    the server iterates, so what could be sent into an asynchronous generator is not passed on.
    """
    wrap = next((wrap for is_kind, wrap in _KINDS if is_kind(function)), _called)
    return functools.wraps(function)(wrap(function, begin))


@contextmanager
def _ended(call: ServedCall) -> Iterator[None]:
    """Note how the block ends, and end the call with it."""
    try:
        yield
    except Exception as error:
        call.fail(error)
        raise
    except BaseException:  # cancelled, or closed by whoever iterates
        call.cancel()
        raise
    finally:
        call.end()


def _called(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        recorded = begin()
        if recorded is None:
            return function(*args, **kwargs)
        with _ended(recorded), recorded.serving():
            return function(*args, **kwargs)

    return call


def _awaited(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        recorded = begin()
        if recorded is None:
            return await function(*args, **kwargs)
        with _ended(recorded), recorded.serving():
            return await function(*args, **kwargs)

    return call


def _generated(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        recorded = begin()
        if recorded is None:
            return (yield from function(*args, **kwargs))
        with _ended(recorded):
            return (yield from each_step(recorded.step, function(*args, **kwargs)))

    return call


def _generated_async(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        recorded = begin()
        make = function if recorded is None else generated_async(lambda *_: recorded.step, function)
        async with aclosing(make(*args, **kwargs)) as steps:
            with nullcontext() if recorded is None else _ended(recorded):
                async for item in steps:
                    yield item

    return call


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[..., Callable[..., Any]]], ...] = (
    (inspect.isasyncgenfunction, _generated_async),
    (inspect.iscoroutinefunction, _awaited),
    (inspect.isgeneratorfunction, _generated),
)
