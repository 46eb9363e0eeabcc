"""Methods that each subclass of a library's class overrides."""

from __future__ import annotations

from contextlib import suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.models.signature import pickled_as

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "_stagetrace_wrapped"
OURS = pickled_as(bool, None)  # the value of MARK: a method that was pickled by value has lost it


def wrap_in_subclasses(base: Any, wraps: dict[str, Callable[[Any], Any]]) -> None:
    """Wrap methods of `base` and of all its subclasses, present and future, where they are defined.

    `wraps`: by a method's name, what makes its wrapped form. Methods that are no plain functions stay as they are.
    """
    _wrap_class(base, wraps)
    for_subclasses(base, lambda cls: _wrap_class(cls, wraps))


def for_subclasses(base: Any, change: Callable[[type], object], *, present: bool = True) -> None:
    """Call `change`, which is guarded, with each subclass of `base`: all future ones, and the `present` ones."""
    original = vars(base).get("__init_subclass__")

    def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:
        if original is not None:
            original.__func__(cls, **kwargs)
        else:
            super(base, cls).__init_subclass__(**kwargs)
        change(cls)

    base.__init_subclass__ = classmethod(__init_subclass__)
    for cls in _subclasses(base) if present else ():
        change(cls)


def _subclasses(cls: Any) -> list[type]:
    found: list[type] = []
    for child in cls.__subclasses__():
        found += [child, *_subclasses(child)]
    return found


@guarded
def _wrap_class(cls: type, wraps: dict[str, Callable[[Any], Any]]) -> None:
    for owner in cls.__mro__:
        for name, wrap in wraps.items():
            method = vars(owner).get(name)
            if type(method) is FunctionType and not hasattr(method, MARK):
                wrapped = wrap(method)
                setattr(wrapped, MARK, OURS)
                with suppress(AttributeError, TypeError):  # a class that cannot be changed
                    setattr(owner, name, wrapped)
