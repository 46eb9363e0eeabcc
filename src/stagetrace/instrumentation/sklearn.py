"""scikit-learn: every estimator, a person's own subclass of BaseEstimator included, at whatever depth it is defined."""

from __future__ import annotations

import functools
import operator
from types import MethodType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.model import INFERENCE, TRANSFORM, description, marked, spelled_out, stand

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

METHODS = {
    **dict.fromkeys(
        (
            "predict",
            "predict_proba",
            "predict_log_proba",
            "decision_function",
            "score_samples",
            "kneighbors",
            "fit_predict",
        ),
        INFERENCE,
    ),
    "transform": TRANSFORM,
    "inverse_transform": TRANSFORM,
}
# These only pass on to the estimators inside, whose own calls show what is preprocessing and what is inference.
PASS_ON = {"Pipeline", "BaseSearchCV"}
_MARK = "_stagetrace_wrapped"
_OURS = stand(bool, None)  # what a wrapped method is marked with: one that was pickled by value is ours no more


def hook(module: ModuleType) -> None:
    """Wrap the methods of all subclasses of BaseEstimator, present and future."""
    base = module.BaseEstimator
    original = vars(base).get("__init_subclass__")

    def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:
        if original is not None:
            original.__func__(cls, **kwargs)
        else:
            super(base, cls).__init_subclass__(**kwargs)
        wrap_class(cls)

    base.__init_subclass__ = classmethod(__init_subclass__)
    if "__setstate__" in vars(base):
        base.__setstate__ = _restoring(base.__setstate__)
    for cls in _subclasses(base):
        wrap_class(cls)


def _restoring(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what restores a pickled estimator: a class that came with it has had its methods only since it was made."""

    @functools.wraps(original)
    def __setstate__(self: Any, state: Any) -> None:
        original(self, state)
        _wrap_restored(type(self))

    return __setstate__


@guarded
def _wrap_restored(cls: type) -> None:
    if not cls.__module__.startswith("sklearn."):  # those are wrapped
        wrap_class(cls)


def _subclasses(cls: Any) -> list[type]:
    found: list[type] = []
    for child in cls.__subclasses__():
        found += [child, *_subclasses(child)]
    return found


@guarded
def wrap_class(cls: type) -> None:
    """Wrap what the class offers where it is defined, mix-ins that are no estimators themselves included."""
    if any(owner.__name__ in PASS_ON and owner.__module__.startswith("sklearn.") for owner in cls.__mro__):
        return
    for owner in cls.__mro__:
        for name, activity in METHODS.items():
            method = vars(owner).get(name)
            if method is not None and owner.__module__ != "builtins" and getattr(method, _MARK, None) is None:
                _wrap(owner, name, method, activity)


def _wrap(owner: type, name: str, method: Any, activity: str) -> None:
    if isinstance(method, staticmethod | classmethod | property):
        return
    if callable(method) and not hasattr(type(method), "check"):
        wrapped: Any = _wrap_function(method, activity)
    elif hasattr(method, "__get__"):
        wrapped = _Descriptor(method, activity)  # `available_if`: the method exists only if the instance allows it
    else:
        return
    setattr(owner, name, wrapped)


def _wrap_function(function: Callable[..., Any], activity: str) -> Callable[..., Any]:
    method = spelled_out(marked(function, _describe, activity), function)
    setattr(method, _MARK, _OURS)
    return method


def _describe(estimator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    return description(type(estimator).__name__, "sklearn", args[0] if args else kwargs.get("X"))


class _Descriptor:
    """A descriptor that answers as the wrapped one does, `hasattr` included, and marks what it returns."""

    def __init__(self, wrapped: Any, activity: str) -> None:
        functools.update_wrapper(self, wrapped)  # type: ignore[arg-type]
        self._wrapped = wrapped
        self._activity = activity
        self._last: tuple[Any, Any] = None, None  # what was bound last, and as it is marked
        setattr(self, _MARK, _OURS)

    def __reduce__(self) -> Any:  # as the methods of `spelled_out`: it is pickled as what it wraps
        return operator.getitem, ((self._wrapped,), 0)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        bound = self._wrapped.__get__(instance, owner)
        if instance is None:
            return bound
        if type(bound) is not MethodType or bound.__self__ is not instance:
            return MethodType(marked(_unbound(bound), _describe, self._activity), instance)
        function, method = self._last
        if function is not bound.__func__:
            function = bound.__func__
            method = _wrap_function(function, self._activity)
            self._last = function, method
        return MethodType(method, instance)


def _unbound(bound: Any) -> Callable[..., Any]:
    @functools.wraps(bound)
    def function(_: Any, *args: Any, **kwargs: Any) -> Any:
        return bound(*args, **kwargs)

    return function
