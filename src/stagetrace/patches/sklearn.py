"""scikit-learn: every estimator, users' own subclasses of BaseEstimator included."""

from __future__ import annotations

import functools
import operator
from contextlib import suppress
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import runs_later, then
from stagetrace.instrumentation.models.base import Library, description
from stagetrace.instrumentation.models.marked import marked
from stagetrace.instrumentation.models.signature import with_signature
from stagetrace.instrumentation.models.subclasses import MARK, OURS, for_subclasses
from stagetrace.semconv import INFERENCE, PREPARE, TRANSFORM

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
    "inverse_transform": PREPARE,  # of a model's input or output
}
# Classes of these modules, and users' subclasses of them, are no models: they transform a model's input.
TRANSFORMERS = tuple(
    f"sklearn.{name}."
    for name in ("preprocessing", "impute", "compose", "feature_selection", "feature_extraction", "pipeline")
)
# These only call the estimators inside, whose own calls show what is preprocessing and what is inference.
PASS_ON = {"Pipeline", "BaseSearchCV"}
FRAMEWORKS = {"xgboost", "lightgbm"}  # their estimators derive from scikit-learn's; users derive from these
_frameworks: WeakKeyDictionary[type, str] = WeakKeyDictionary()  # of estimators
NO_METHODS = (staticmethod, classmethod, functools.cached_property)
SKLEARN = Library(
    __name__,
    "sklearn",
    package="scikit-learn",
    recognised="of each estimator, your own subclasses of `BaseEstimator` included: "
    + ", ".join(f"`{name}`" for name in METHODS),
    not_recognised="methods that are coroutines, generators or class methods",
)


def patch_base(module: ModuleType) -> None:
    """Wrap the methods of all subclasses of BaseEstimator, present and future."""
    base = module.BaseEstimator
    for_subclasses(base, wrap_class)
    if "__setstate__" in vars(base):
        base.__setstate__ = then(_wrap_restored)(base.__setstate__)


def _wrap_restored(estimator: Any) -> None:
    """Wrap a class that came with the pickle: it got its methods after it was made, unseen by us."""
    if not type(estimator).__module__.startswith("sklearn."):  # those are wrapped already
        wrap_class(type(estimator))


@guarded
def wrap_class(cls: type) -> None:
    """Wrap the methods of a class where they are defined, on mix-ins that are no estimators, too."""
    if any(owner.__name__ in PASS_ON and owner.__module__.startswith("sklearn.") for owner in cls.__mro__):
        return
    for owner in cls.__mro__:
        for name, activity in METHODS.items():
            method = vars(owner).get(name)
            if method is not None and owner.__module__ != "builtins" and getattr(method, MARK, None) is None:
                _wrap(owner, name, method, PREPARE if activity == TRANSFORM and _only_prepares(owner) else activity)


def _only_prepares(owner: type) -> bool:
    return any(f"{base.__module__}.".startswith(TRANSFORMERS) for base in owner.__mro__)


def _wrap(owner: type, name: str, method: Any, activity: str) -> None:
    kind = type(method)
    if isinstance(method, NO_METHODS) or hasattr(kind, "__set__") or not hasattr(kind, "__get__") or runs_later(method):
        return
    if kind is FunctionType and not _attributes(method):
        wrapped: Any = _wrap_function(method, activity)
    else:
        wrapped = _Descriptor(method, activity)
    with suppress(AttributeError, TypeError):  # a class that cannot be changed
        setattr(owner, name, wrapped)


def _attributes(function: Any) -> dict[str, Any]:
    """Return the attributes that others have set on a function, such as a decorator that counts its calls."""
    attributes = getattr(function, "__dict__", {})
    return {name: value for name, value in attributes.items() if not name.startswith("__") and name != MARK}


def _wrap_function(function: Callable[..., Any], activity: str) -> Callable[..., Any]:
    method = with_signature(marked(function, _describe, activity), function)
    if type(function) is not FunctionType:  # it has more attributes, such as `cache_clear` of `lru_cache`
        for name in dir(function):
            if not name.startswith("_") and not hasattr(method, name):
                setattr(method, name, getattr(function, name))
    setattr(method, MARK, OURS)
    return method


def _describe(estimator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    cls = type(estimator)
    framework = _frameworks.get(cls)
    if framework is None:
        packages = [base.__module__.partition(".")[0] for base in cls.__mro__]
        framework = _frameworks[cls] = next((one for one in packages if one in FRAMEWORKS), "sklearn")
    return description(cls.__name__, framework, args[0] if args else kwargs.get("X"), is_flat=True)


class _Descriptor:
    """A descriptor that does what the wrapped one does, also for `hasattr`, and marks the method that it returns.

    It is for `available_if`, where a method exists only if the instance allows it, and for descriptors that decorators
    make. Asked on the class, and where the result is no method, it returns what the wrapped one returns.
    """

    def __init__(self, wrapped: Any, activity: str) -> None:
        functools.update_wrapper(self, wrapped)  # type: ignore[arg-type]
        self._wrapped = wrapped
        self._activity = activity
        self._last: tuple[Any, Any] = None, None  # the function that was bound last, and its marked form
        setattr(self, MARK, OURS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __reduce__(self) -> Any:  # it is pickled as the descriptor that it wraps
        return operator.getitem, ((self._wrapped,), 0)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        bound = self._wrapped.__get__(instance, owner)
        return bound if instance is None else self._marked(bound, instance) or bound

    @guarded
    def _marked(self, bound: Any, instance: Any) -> Any:
        """Return the marked form of what was bound to an instance; None if that is no method of it."""
        if type(bound) is MethodType:
            return self._method(bound.__func__, instance) if bound.__self__ is instance else None
        if type(bound) is functools.partial and type(bound.func) is MethodType:  # of `partialmethod`
            made = functools.partial(self._marked(bound.func, instance) or bound.func, *bound.args, **bound.keywords)
            vars(made).update(vars(bound))
            return made
        if type(bound) is FunctionType and not runs_later(bound):
            method = marked(lambda _, *args, **kwargs: bound(*args, **kwargs), _describe, self._activity)
            return functools.wraps(bound)(lambda *args, **kwargs: method(instance, *args, **kwargs))
        return None

    def _method(self, function: Any, instance: Any) -> Any:
        of_last, method = self._last
        if of_last is not function:
            method = None if runs_later(function) else _wrap_function(function, self._activity)
            self._last = function, method
        if method is None:
            return None
        vars(method).update(_attributes(function))  # as they are now
        return MethodType(method, instance)
