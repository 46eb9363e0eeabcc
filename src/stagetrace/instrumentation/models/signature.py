"""Functions that have the parameters of another one, and are pickled as it."""

from __future__ import annotations

import functools
import inspect
import operator
from types import FunctionType
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.models.marked import inside, marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.models.marked import Describe

CLASS = "__class__"  # the cell in which `super()` finds a method's class
Parameter = tuple[str, Any, bool]  # its name, its kind, whether it has a default
_ANY: tuple[Parameter, ...] = (
    ("self", inspect.Parameter.POSITIONAL_ONLY, False),
    ("args", inspect.Parameter.VAR_POSITIONAL, False),
    ("kwargs", inspect.Parameter.VAR_KEYWORD, False),
)
_RUNS_LATER = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# How a parameter of each kind is passed on.
_PASSED = {
    inspect.Parameter.POSITIONAL_ONLY: "{}",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "{}",
    inspect.Parameter.VAR_POSITIONAL: "*{}",
    inspect.Parameter.KEYWORD_ONLY: "{0}={0}",
    inspect.Parameter.VAR_KEYWORD: "**{}",
}


def recorded(function: Callable[..., Any], describe: Describe, role: str, **how: Any) -> Callable[..., Any]:
    """Return a function as `marked` makes it; a method that is a plain function keeps its parameters as well."""
    made = marked(function, describe, role, **how)
    is_plain = type(function) is FunctionType and not function.__code__.co_flags & _RUNS_LATER
    return with_signature(made, function) if is_plain and how["is_method"] else made


def with_signature(call: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, the marked `method`, with the parameters of `method`; inside another model it calls that directly.

    A forest calls its hundreds of trees for each prediction, and CPython passes named parameters on in a tenth of the
    time of `*args, **kwargs`. Where cloudpickle or dill pickles it by value, as for a class defined in `__main__`, it
    becomes a function that only calls `method`, and needs no stagetrace.
    """
    parameters, given, names = _ANY, {}, {}
    defaults: tuple[Any, Any] = None, None
    if type(method) is FunctionType:
        names = method.__globals__
        # attrs makes a class with slots anew, and writes the new class into this cell, where `super()` looks.
        given = dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
        if not hasattr(method, "__signature__"):  # else the parameters are others
            found = inspect.signature(method, follow_wrapped=False).parameters.values()
            parameters = tuple((one.name, one.kind, one.default is not one.empty) for one in found)
            defaults = method.__defaults__, method.__kwdefaults__
    chooser = _chooser(parameters, CLASS in given)(_is_inside, method, pickled_as(call, method), None)
    free = zip(chooser.__code__.co_freevars, chooser.__closure__, strict=True)
    cells = tuple(given[CLASS] if name == CLASS else cell for name, cell in free)
    made: Any = functools.wraps(method)(FunctionType(chooser.__code__, names, closure=cells))
    made.__defaults__, made.__kwdefaults__ = defaults
    return made  # type: ignore[no-any-return]


class _PickledAs(functools.partial):  # type: ignore[type-arg]
    """A callable that is pickled as another."""

    pickled: Any

    def __reduce__(self) -> Any:
        return operator.getitem, ((self.pickled,), 0)


def pickled_as(function: Callable[..., Any], pickled: Any) -> _PickledAs:
    """Return a callable that calls `function`, and that is `pickled` once it was pickled and loaded."""
    made = _PickledAs(function)
    made.pickled = pickled
    return made


_is_inside = pickled_as(inside.get, bool)  # `bool()` is False: inside no model


@functools.cache
def _chooser(parameters: tuple[Parameter, ...], has_class: bool) -> Any:
    """Return a maker of functions with these parameters that choose between two others; each may refer to its class."""
    no_default = inspect.Parameter.empty
    head = [inspect.Parameter(name, kind, default=None if has else no_default) for name, kind, has in parameters]
    passed = ", ".join(_PASSED[kind].format(name) for name, kind, _ in parameters)
    call = f"_stagetrace_call or {CLASS}" if has_class else "_stagetrace_call"
    chosen = f"(_stagetrace_method if _stagetrace_inside() else {call})"
    function = f"lambda {str(inspect.Signature(head))[1:-1]}: {chosen}({passed})"
    text = f"lambda _stagetrace_inside, _stagetrace_method, _stagetrace_call, {CLASS}: {function}"
    # The code has only parameter names in it, and no globals of this module. A traceback shows this module's name.
    return eval(compile(text, f"<{__name__}>", "eval"), {})  # noqa: S307
