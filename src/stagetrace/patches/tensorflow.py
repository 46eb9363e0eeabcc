"""TensorFlow: functions and signatures that a SavedModel restores, and the interpreters of TFLite and LiteRT.

A `tf.function` that a user defines is not marked: it may be anything.
"""

from __future__ import annotations

import functools
import os
from contextvars import ContextVar
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.base import after, patching
from stagetrace.instrumentation.models.base import Library, description
from stagetrace.instrumentation.models.eager import eagerly, first_input
from stagetrace.instrumentation.models.marked import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


def _running(original: Callable[..., Any]) -> Callable[..., Any]:
    return eagerly(original, _describe, __name__)


def _running_lite(original: Callable[..., Any]) -> Callable[..., Any]:
    return marked(original, _describe_lite)


# The functions that a SavedModel restores, and its signatures.
patch_function_deserialization = patching(
    {"RestoredFunction.__init__": after(_note), "RestoredFunction.__call__": _running}
)
patch_load = patching(
    {"_WrapperFunction.__init__": after(_note), "_WrapperFunction.__call__": _running, "load": _loaded}
)
# The interpreter of TFLite or LiteRT, and its runner of signatures.
patch_interpreter = patching(
    {
        "Interpreter.__init__": after(_note),
        "Interpreter.invoke": _running_lite,
        "SignatureRunner.__call__": _running_lite,
    }
)
