"""ultralytics: each batch that a predictor takes is preprocessing, inference and postprocessing, streamed or not."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from stagetrace.instrumentation.models.base import Library, description, no_description
from stagetrace.instrumentation.models.device_time import begin_on_device
from stagetrace.instrumentation.models.module_name import device_of, first_tensor
from stagetrace.instrumentation.models.signature import recorded
from stagetrace.instrumentation.models.subclasses import wrap_in_subclasses
from stagetrace.semconv import INFERENCE, POSTPROCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

# What runs a model, by its format; others are as they are called.
FRAMEWORKS: Final = {"pt": "torch", "torchscript": "torch", "onnx": "onnxruntime", "engine": "tensorrt"}
ULTRALYTICS = Library(
    __name__,
    "torch",
    library="ultralytics",
    recognised="of each predictor, your own subclasses of `BasePredictor` included: `inference`, and `postprocess` as"
    " postprocessing; with `stream=True` as the results are iterated",
    not_recognised="what a callback does",
)


def patch_predictor(module: ModuleType) -> None:
    """Wrap the parts of all predictors; what comes before `inference` is preprocessing by that."""
    wrap_in_subclasses(module.BasePredictor, {"inference": _inferring, "postprocess": _postprocessing})


def _inferring(method: Callable[..., Any]) -> Callable[..., Any]:
    return recorded(method, _describe, INFERENCE, where=__name__, is_method=True, timer=begin_on_device)


def _postprocessing(method: Callable[..., Any]) -> Callable[..., Any]:
    return recorded(method, no_description, POSTPROCESS, where=__name__, is_method=True)


def _describe(predictor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    form = str(getattr(predictor.model, "format", "pt"))
    given = predictor.args.model
    name = PurePath(str(given)).name if given else type(predictor).__name__
    return description(name, FRAMEWORKS.get(form, form), first_tensor(args, kwargs), device=device_of(predictor))
