"""The contract of a patch, and what most patches are made of: a table of what they wrap, each in one of a few ways."""

from __future__ import annotations

import functools
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    Wrap = Callable[[Any], Any]  # returns the wrapped form of a function or method


class Patch(Protocol):
    """A function `patch_<what>(module)` of a patch file, named in `registry.py` beside the module that it changes.

    The import hook calls it once in a process, right after `module` was executed and before the code that imports it
    goes on; where the module was imported before the activation, at the activation. It may run in any thread, and the
    module may import, at its end, modules that have patches of their own.

    - It wraps classes, methods and functions in place, on the class or module where they are defined, so that it does
      not matter who has imported them before. It reads all that it will wrap before it changes the first of it: a
      release of the library that lacks something stays as it was, whole. `patching` makes a patch of a table.
    - If it raises, that is logged once as `cannot patch MODULE`, `stagetrace doctor` shows it, the library works as
      without stagetrace, and all other patches go on.
    - Its wrappers call the original exactly once, with the same arguments, return what that returns and raise what that
      raises. All else that they do is guarded (`guard.guarded`, or `guard.guarded_end` for what ends something): an
      error of ours never reaches the caller. A patch that fails ten times at one place is switched off; its wrappers
      then only call the original. `before`, `after` and `then` make such wrappers.
    - Outside a recorded request a wrapper does as good as nothing. Programs that serve nothing import libraries, too:
      the patch file of a library that is no server imports no OpenTelemetry. Nor does one of a server that also runs in
      processes that serve nothing: a guarded function imports what its wrappers need. Any other import is at the top.
    - A wrapper keeps name, signature, documentation and kind (function, coroutine, generator) of the original
      (`functools.wraps`), and what is pickled stays loadable without stagetrace.
    - A patch file imports no other patch file. What several share is in `stagetrace.instrumentation`.
    """

    def __call__(self, module: ModuleType, /) -> None:
        """Wrap what the module defines."""


def patching(wraps: Mapping[str, Wrap]) -> Patch:
    """Return a patch that wraps what a module defines: by its name there, `function` or `Class.method`."""

    def patch(module: ModuleType) -> None:
        wrap_all((*_found(module, name), wrap) for name, wrap in wraps.items())

    return patch


def wrap_all(wraps: Iterable[tuple[Any, str, Wrap]]) -> None:
    """Wrap attributes, each of an owner and with its name there, once all of them were read."""
    made = [(owner, name, wrap(getattr(owner, name))) for owner, name, wrap in wraps]
    for owner, name, wrapped in made:
        setattr(owner, name, wrapped)


def _found(module: ModuleType, path: str) -> tuple[Any, str]:
    owner, _, name = path.rpartition(".")
    return (attrgetter(owner)(module) if owner else module), name


def before(note: Callable[..., Any], guard: Wrap = guarded) -> Wrap:
    """Return how to wrap a function so that `note` gets the arguments of each call first.

    Of a coroutine function it gets them when that is awaited, in that context, and not when it is called.
    It may return other ones, as a tuple and a dictionary, for the function; else it returns None.
    """
    note = guard(note)

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = note(*args, **kwargs) or (args, kwargs)
            return original(*args, **kwargs)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = note(*args, **kwargs) or (args, kwargs)
            return await original(*args, **kwargs)

        return by_kind(original, call, awaited)

    return wrap


def after(note: Callable[..., Any], guard: Wrap = guarded) -> Wrap:
    """Return how to wrap a function so that `note` gets what each call has returned, and its arguments.

    It may return something else in place of that; else it returns None.
    """
    note = guard(note)

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            other = note(result, *args, **kwargs)
            return result if other is None else other

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            result = await original(*args, **kwargs)
            other = note(result, *args, **kwargs)
            return result if other is None else other

        return by_kind(original, call, awaited)

    return wrap


def then(note: Callable[[Any], Any], guard: Wrap = guarded) -> Wrap:
    """Return how to wrap a method so that `note` gets its instance once a call has returned."""
    note = guard(note)

    def wrap(original: Any) -> Any:
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            note(self)
            return result

        async def awaited(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            result = await original(self, *args, **kwargs)
            note(self)
            return result

        return by_kind(original, call, awaited)

    return wrap


def by_kind(original: Any, call: Any, awaited: Any, generated: Any = None, generated_async: Any = None) -> Any:
    """Return the wrapper of the original's kind: of a function, a coroutine function, or a generator function.

    Where there is none for generators, a call of such a function is one of any function.
    """
    kinds = ((isasyncgenfunction, generated_async), (iscoroutinefunction, awaited), (isgeneratorfunction, generated))
    made = next((wrapper for is_kind, wrapper in kinds if wrapper is not None and is_kind(original)), call)
    return functools.wraps(original)(made)


def runs_later(function: Any) -> bool:
    """Return whether a call only makes a coroutine or generator, which runs later."""
    return any(is_kind(function) for is_kind in (iscoroutinefunction, isgeneratorfunction, isasyncgenfunction))


def with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with another value for the one that is given by this place or name."""
    if len(args) > place:
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: value}
