"""`stagetrace.instrument`: recognise the calls of a model that stagetrace does not know."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, overload

from stagetrace.instrumentation.models.base import Library
from stagetrace.instrumentation.models.signature import recorded
from stagetrace.semconv import INFERENCE, PREPARE, PREPROCESS

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

ROLES = {INFERENCE: INFERENCE, PREPROCESS: PREPARE}
_NO_FUNCTION = (staticmethod, classmethod, property)


@overload
def instrument(
    function: F,
    /,
    stage: str = ...,
    *,
    model: str | None = ...,
    version: str | None = ...,
    framework: str | None = ...,
) -> F: ...
@overload
def instrument(
    *,
    stage: str = ...,
    model: str | None = ...,
    version: str | None = ...,
    framework: str | None = ...,
) -> Callable[[F], F]: ...
def instrument(
    function: Any = None,
    /,
    stage: str = INFERENCE,
    *,
    model: str | None = None,
    version: str | None = None,
    framework: str | None = None,
) -> Any:
    """Return `function` with its calls recognised, as those of the libraries that stagetrace knows; or a decorator.

    The outermost call in a request is its `stage`, `inference` or `preprocess`; a call inside another model's, and one
    outside a request, only runs the function. Of a generator each step is the stage. `function` is a function, a
    method, or any other callable; it keeps its kind, its signature, and what it returns and raises.

    `model` and `version` are `ml.model.name` and `ml.model.version`, by default the class of a method's instance, else
    the function's name, and nothing. `framework` is `ml.framework`, by default the first part of its module's name.
    The first argument gives `ml.batch.size` and `ml.input.size`, by its shape or length.

    Raises TypeError for what cannot be called, and ValueError for another stage: use `stagetrace.stage` for it.
    """
    if stage not in ROLES:
        raise ValueError(
            f"instrument() takes stage={' or '.join(map(repr, ROLES))}, not {stage!r}: use stagetrace.stage({stage!r})"
        )
    if function is None:
        return functools.partial(instrument, stage=stage, model=model, version=version, framework=framework)
    if isinstance(function, (type, *_NO_FUNCTION)) or not callable(function):
        raise TypeError(_wrong(function))
    is_method = _takes_self(function)
    library = Library(
        where=__name__,
        framework=framework or str(getattr(function, "__module__", None) or "").partition(".")[0],
        name=_named(model, function, is_method=is_method),
        version=lambda _: version,
    )
    return recorded(function, library.describe, ROLES[stage], where=__name__, is_method=is_method)


def _wrong(function: Any) -> str:
    if isinstance(function, type):
        return f"instrument() takes a callable, not the class {function.__name__}: instrument its method"
    if isinstance(function, _NO_FUNCTION):
        return f"put @stagetrace.instrument(...) below @{type(function).__name__}, next to the function"
    return f"instrument() takes a callable, not {type(function).__name__}"


def _takes_self(function: Any) -> bool:
    """Return whether this is a function of a class, whose first parameter is its instance."""
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "self"


def _named(model: str | None, function: Any, *, is_method: bool) -> Callable[[Any], str]:
    if model is not None:
        return lambda _: model
    if is_method:
        return lambda instance: type(instance).__name__
    instance = getattr(function, "__self__", None)
    name = getattr(function, "__name__", None) or type(function).__name__
    return lambda _: name if instance is None or inspect.ismodule(instance) else type(instance).__name__
