"""torch: the outermost module that is called is the model, whatever it calls; a transform or a training is none.

torch's global forward hooks are not used: with one set, each layer's call takes its slow path. `torch.compile` reads
the wrapper's code, so the wrapper asks first whether that is compiling, and the rest is not read.
"""

from __future__ import annotations

import functools
import sys
from os import PathLike, fsdecode
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stagetrace import log
from stagetrace.guard import report, switch
from stagetrace.instrumentation.base import after, patching, wrap_all
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.batching.queued_items import taken
from stagetrace.instrumentation.models import unrecorded_calls as checked
from stagetrace.instrumentation.models.base import Library, description, first_argument
from stagetrace.instrumentation.models.device_time import begin_capture, begin_on_device, end_capture
from stagetrace.instrumentation.models.marked import How, beside, inside, is_outermost, marked
from stagetrace.instrumentation.models.module_name import device_of, first_tensor, held_tensor
from stagetrace.instrumentation.models.signature import recorded
from stagetrace.request.current import current, entries
from stagetrace.semconv import INFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

WHERE = "stagetrace.patches.torch"
_switch = switch(WHERE)
TORCH = Library(
    __name__,
    "torch",
    recognised="`Module.__call__` of the outermost module: eager, scripted, traced, exported, in `DataParallel`,"
    " compiled by `torch.compile` or `Module.compile`; packages of AOTInductor",
    not_recognised="a function compiled by `torch.compile`, and `CUDAGraph.replay`, which may be anything; a module"
    " without parameters, buffers and code of its own, such as a transform; a step of training",
)
# A module of these alone, without parameters and buffers, is a function and no model.
FUNCTIONS = ("torch.nn.", "torch.fx.", "torchvision.transforms.")
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
ORIGIN = "_stagetrace_origin"  # on a model of AOTInductor: the name of its file
MAX_LOGGED = 8
_logged: set[str] = set()  # classes that were called in training mode


def patch_graphs(module: ModuleType) -> None:
    """Wrap what begins and ends the capture of a CUDA graph, during which no device is asked for anything."""
    graph = module.CUDAGraph
    wraps = {"capture_begin": begin_capture, "capture_end": end_capture, "capture_end_pre": end_capture}
    wrap_all((graph, name, wrap) for name, wrap in wraps.items() if name in vars(graph))


def _calling_package(original: Callable[..., Any]) -> Callable[..., Any]:
    return recorded(original, _describe_package, INFERENCE, where=__name__, is_method=True, timer=begin_on_device)


def _note_origin(loaded: Any, path: Any, *_: Any, **__: Any) -> None:
    if isinstance(path, str | PathLike):
        vars(loaded)[ORIGIN] = PurePath(fsdecode(path)).name


# A model that AOTInductor has compiled, and what loads it, to know its file.
patch_packages = patching({"AOTICompiledModel.__call__": _calling_package})
patch_loading = patching({"load_package": after(_note_origin)})


def _calling(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `Module.__call__` that is the inference where it is the outermost call of a model."""
    torch = sys.modules["torch"]
    compiler = getattr(torch, "compiler", None)  # from torch 2.1 on
    is_compiling = getattr(compiler, "is_compiling", None) or torch.jit.is_scripting
    is_read = getattr(compiler, "is_dynamo_compiling", None) or is_compiling
    is_inside, record_of, never = inside.get, current.get, checked.NEVER
    call = marked(original, _describe, timer=begin_on_device)
    how = How(_describe, INFERENCE, _switch, is_method=True)

    # Each layer is called through this: `*args` alone takes half the time, and what is rare is in a function.
    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        # First: torch.compile reads this function up to here, where this is true, and must understand it.
        if is_read() or is_inside() or (record_of() is None and checked.due is never and not taken and not entries):
            return original(*args, **kwargs)
        return outermost(*args, **kwargs)

    def outermost(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = original
        try:
            if not _switch.off and is_outermost(self) and not is_compiling() and _is_model(self):
                chosen = train if _is_trained(self) else call
            elif is_counted() and not is_compiling() and _is_model(self) and not self.training:
                chosen = aside
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(WHERE, error)
        return chosen(self, *args, **kwargs)

    def is_counted() -> bool:
        return checked.is_counting and not is_inside() and current_work() is None

    def aside(self: Any, *args: Any, **kwargs: Any) -> Any:
        return beside(original, how, (self, *args), kwargs)

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = inside.set(True)  # nor is a module inside it an inference, as a frozen one
        try:
            return original(self, *args, **kwargs)
        finally:
            inside.reset(token)

    return method


def _is_model(module: Any) -> bool:
    if held_tensor(module) is not None:
        return True
    own = sys.modules["torch"].nn.Module  # its methods return iterators; a model may override them with lists
    return not all(type(one).__module__.startswith(FUNCTIONS) for one in own.modules(module))


def _is_trained(module: Any) -> bool:
    """Return whether this call is a step of training: with gradients, and a module in training mode has some.

    The one that is called may be in that mode around one that is not, and an exported one cannot leave it.
    """
    if not getattr(module, "training", False) or not sys.modules["torch"].is_grad_enabled() or "train" in vars(module):
        return False
    own = sys.modules["torch"].nn.Module
    held = (one for one in own.modules(module) if getattr(one, "training", False))
    if not any(tensor.requires_grad for one in held for tensor in own.parameters(one, recurse=False)):
        return False
    name = type(module).__name__
    if name not in _logged and len(_logged) < MAX_LOGGED:
        _logged.add(name)
        log.info(
            f"{name} is called in training mode, with gradients: that counts as training, not as inference.\n"
            "To predict, call its eval() once, or call it within torch.inference_mode()."
        )
    return True


def _describe(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    holds = WRAPPERS.get(type(module).__name__)
    if holds is not None:
        module = getattr(module, holds)
    name = str(vars(module).get("name_or_path") or "")  # transformers: an id, or a folder
    if not name:
        name = module.original_name if hasattr(type(module), "original_name") else type(module).__name__
    elif name[0] in "/.~":
        name = PurePath(name).name
    rows = first_tensor(args, kwargs)
    return description(name, "torch", rows, device=device_of(module) or device_of(rows))


def _describe_package(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    rows = first_argument(args, kwargs)  # which must be where the model is
    return description(vars(model).get(ORIGIN) or type(model).__name__, "torch", rows, device=device_of(rows))


patch_torch = patching({"nn.Module.__call__": _calling})  # inside another model the wrapper only calls the original
