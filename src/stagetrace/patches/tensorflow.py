"""TensorFlow: functions and signatures that a SavedModel restores, and the interpreters of TFLite and LiteRT.

A `tf.function` that a user defines is not marked: it may be anything.
"""

from __future__ import annotations

import functools
import os
from contextvars import ContextVar
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.base import after
from stagetrace.instrumentation.models.base import Library, description
from stagetrace.instrumentation.models.eager import eagerly, first_input
from stagetrace.instrumentation.models.marked import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

UNNAMED = "saved_model"
ORIGIN = "_stagetrace_origin"  # on a restored object: the path of its model

TENSORFLOW = Library(
    __name__,
    "tensorflow",
    package="tensorflow-cpu",
    recognised="functions and signatures of `tf.saved_model.load`; `tf.lite.Interpreter.invoke`, its signature runners",
    not_recognised="a `tf.function` of your own, which may be anything",
)
LITERT = Library(
    __name__, "litert", package="ai-edge-litert", recognised="`Interpreter.invoke` and its signature runners"
)

_loading: ContextVar[Any] = ContextVar("stagetrace.loading", default=None)


def patch_function_deserialization(module: ModuleType) -> None:
    """Wrap the class of the functions that a SavedModel restores."""
    _patch_restored(module.RestoredFunction)


def patch_load(module: ModuleType) -> None:
    """Wrap `tf.saved_model.load`, and the class of the signatures that it restores."""
    _patch_restored(module._WrapperFunction)
    module.load = _loaded(module.load)  # type: ignore[attr-defined]


def patch_interpreter(module: ModuleType) -> None:
    """Wrap the interpreter of TFLite or LiteRT, and its runner of signatures."""
    lite, runner = module.Interpreter, module.SignatureRunner
    lite.__init__ = after(_note)(lite.__init__)
    lite.invoke = marked(lite.invoke, _describe_lite)
    runner.__call__ = marked(runner.__call__, _describe_lite)


def _patch_restored(cls: Any) -> None:
    cls.__init__ = after(_note)(cls.__init__)
    cls.__call__ = eagerly(cls.__call__, _describe, __name__)


def _note(_: None, restored: Any, *args: Any, **kwargs: Any) -> None:
    """Note the path of an object's model, once it is made."""
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
    return description(name or UNNAMED, "tensorflow", first_input(args, kwargs), version=version, is_flat=True)


def _describe_lite(runs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    framework = "litert" if type(runs).__module__.startswith("ai_edge") else "tflite"
    interpreter = runs if hasattr(runs, "invoke") else runs._interpreter
    return description(_path(interpreter).name or "Interpreter", framework, first_input(args, kwargs), is_flat=True)


def _path(restored: Any) -> PurePath:
    return PurePath(os.fsdecode(vars(restored).get(ORIGIN, "")))
