"""TensorFlow: what a SavedModel restores, its functions and its signatures, and what TFLite and LiteRT interpret.

A `tf.function` of one's own is no model: it may be anything.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report, switch
from stagetrace.instrumentation.models.base import description, is_outermost, marked
from stagetrace.semconv import ML_MODEL_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from stagetrace.instrumentation.models.base import Describe

# By module, the class whose objects are a model's functions.
RESTORED = {
    "tensorflow.python.saved_model.function_deserialization": "RestoredFunction",
    "tensorflow.python.saved_model.load": "_WrapperFunction",
}
UNNAMED = "saved_model"
ORIGIN = "_stagetrace_origin"  # of such an object: the path of its model

_loading: ContextVar[Any] = ContextVar("stagetrace.loading", default=None)


def hook(module: ModuleType) -> None:
    """Wrap what runs a model, and note where it comes from."""
    restored = RESTORED.get(module.__name__)
    if restored is None:
        lite, runner = module.Interpreter, module.SignatureRunner
        lite.__init__ = _noting(lite.__init__)
        lite.invoke = marked(lite.invoke, _describe_lite)
        runner.__call__ = marked(runner.__call__, _describe_lite)
        return
    cls = getattr(module, restored)
    cls.__init__ = _noting(cls.__init__)
    cls.__call__ = eagerly(cls.__call__, _describe)
    if module.__name__.endswith(".load"):
        module.load = _loaded(module.load)  # type: ignore[attr-defined]


def eagerly(original: Callable[..., Any], describe: Describe) -> Callable[..., Any]:
    """Return a method that is the inference where it is the outermost call, and no graph is being made of it."""
    here = switch(describe.__module__)
    call = marked(original, describe)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = original
        try:
            if is_outermost(self) and not here.off and not _is_tracing():
                chosen = call
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report(here.hook, error)
        return chosen(self, *args, **kwargs)

    return method


def _is_tracing() -> bool:
    """Return whether TensorFlow makes a graph, of a function that is called for the first time."""
    is_eager = getattr(sys.modules.get("tensorflow"), "executing_eagerly", None)  # not yet, while it is being imported
    return is_eager is not None and not is_eager()


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int | None]:
    """Return the first input of a call, and how many rows it has if that is known without computing anything."""
    rows: Any = args[0] if args else next(iter(kwargs.values()), None)
    if isinstance(rows, Mapping):
        rows = next(iter(rows.values()), None)
    elif isinstance(rows, list | tuple) and rows and hasattr(rows[0], "shape"):  # several inputs
        rows = rows[0]
    shape = getattr(rows, "shape", None)
    if shape is None or not getattr(shape, "dims", None):  # a TensorShape's, which is no tuple
        return rows, None
    return rows, shape[0]


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a constructor that notes of which model the object is."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _note(self, args, kwargs)

    return __init__


@guarded
def _note(restored: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = args[0] if args else kwargs.get("model_path")  # of an interpreter
    origin = _loading.get() or (given if isinstance(given, str | os.PathLike) else None)
    if origin is not None:
        vars(restored)[ORIGIN] = origin


def _loaded(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(export_dir: Any, *args: Any, **kwargs: Any) -> Any:
        before = _loading.set(export_dir)
        try:
            return original(export_dir, *args, **kwargs)
        finally:
            _loading.reset(before)

    return load


def _describe(restored: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    path = _path(restored)
    name, version = path.name, None
    if name.isdigit() and path.parent.name:  # NAME/VERSION, as TensorFlow Serving wants its models
        name, version = path.parent.name, name
    described = description(name or UNNAMED, "tensorflow", *first_input(args, kwargs))
    return {**described, ML_MODEL_VERSION: version} if version else described


def _describe_lite(runs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    framework = "litert" if type(runs).__module__.startswith("ai_edge") else "tflite"
    interpreter = runs if hasattr(runs, "invoke") else runs._interpreter
    return description(_path(interpreter).name or "Interpreter", framework, *first_input(args, kwargs))


def _path(restored: Any) -> PurePath:
    return PurePath(os.fsdecode(vars(restored).get(ORIGIN, "")))
