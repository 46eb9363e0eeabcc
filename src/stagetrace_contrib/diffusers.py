"""diffusers: a call of a pipeline is one inference, whatever it calls in each step."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.models.base import Library
from stagetrace.instrumentation.models.device_time import begin_on_device
from stagetrace.instrumentation.models.module_name import device_of, name_of
from stagetrace.instrumentation.models.signature import recorded
from stagetrace.instrumentation.models.subclasses import wrap_in_subclasses
from stagetrace.semconv import INFERENCE, ML_STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

STEPS = "num_inference_steps"
DIFFUSERS = Library(
    __name__,
    "torch",
    library="diffusers",
    name=name_of,
    device=device_of,
    recognised="`__call__` of each `DiffusionPipeline`, your own subclasses included, with `ml.steps`",
    not_recognised="`ModularPipeline`; components that are called by hand are modules of torch",
)


def patch_pipelines(module: ModuleType) -> None:
    """Wrap the call of all pipelines: each has its own."""
    wrap_in_subclasses(module.DiffusionPipeline, {"__call__": _calling})


def _calling(call: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(call).parameters
    place = list(parameters).index(STEPS) - 1 if STEPS in parameters else len(parameters)
    usual = parameters[STEPS].default if STEPS in parameters else None

    def describe(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        described = DIFFUSERS.describe(pipeline, args, kwargs)
        given = _given(args, kwargs, place)
        steps = usual if given is None else given
        return {**described, ML_STEPS: steps} if type(steps) is int else described

    return recorded(call, describe, INFERENCE, where=__name__, is_method=True, timer=begin_on_device)


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> Any:
    return args[place] if len(args) > place else kwargs.get(STEPS)
