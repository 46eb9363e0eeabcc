"""transformers: a pipeline is preprocessing, inference and postprocessing; `generate` is one inference."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import report, switch
from stagetrace.instrumentation.models.base import Calls, Library, description
from stagetrace.instrumentation.models.device_time import begin_on_device
from stagetrace.instrumentation.models.module_name import device_of, first_tensor, framework_of, name_of
from stagetrace.instrumentation.models.signature import recorded
from stagetrace.instrumentation.models.subclasses import wrap_in_subclasses
from stagetrace.semconv import INFERENCE, POSTPROCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

_switch = switch(__name__)
TRANSFORMERS = Library(
    __name__,
    "torch",
    library="transformers",
    name=name_of,
    device=device_of,
    rows=first_tensor,
    timer=begin_on_device,
    recognised="of each `Pipeline`, your own subclasses included: `forward` as inference, `postprocess` as "
    "postprocessing, and what comes before as preprocessing, of lists, data sets and generators too",
    not_recognised="`generate_batch` and continuous batching, which serve many requests from one thread",
)
patch_generation = TRANSFORMERS.patch(Calls("GenerationMixin", ("generate",)))


def patch_pipelines(module: ModuleType) -> None:
    """Wrap `forward`, which also waits for the device, and each pipeline's own `postprocess`.

    What a pipeline does before `forward` is preprocessing by that: it is a step of a data loader, or a generator.
    """
    pipeline = module.Pipeline
    forward = _forwarding(pipeline.forward)
    wrap_in_subclasses(pipeline, {"postprocess": _postprocessing})
    pipeline.forward = forward


def _forwarding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that is the inference, unless the pipeline's model generates: then `generate` is."""
    call = recorded(original, _describe_forward, INFERENCE, where=__name__, is_method=True, timer=begin_on_device)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = original
        try:
            if not _switch.off and not _generates(self):
                chosen = call
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(__name__, error)
        return chosen(self, *args, **kwargs)

    return forward


def _generates(pipeline: Any) -> bool:
    return getattr(pipeline, "_pipeline_calls_generate", False) and pipeline.model.can_generate()


def _postprocessing(function: Callable[..., Any]) -> Callable[..., Any]:
    return recorded(function, _no_description, POSTPROCESS, where=__name__, is_method=True)


def _no_description(_pipeline: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    return None


def _describe_forward(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    model = pipeline.model
    rows = first_tensor(args, kwargs)
    return description(name_of(model), framework_of(model), rows, device=device_of(pipeline))
