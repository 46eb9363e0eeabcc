"""torch: the outermost module that is called is the model, whatever it calls; a transform is none.

On a GPU a call returns before the device is done: the stage is the time of the host.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stagetrace.guard import report, switch
from stagetrace.instrumentation.models.base import Library, description
from stagetrace.instrumentation.models.marked import is_outermost, marked

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

WHERE = "stagetrace.instrumentation.models.torch"
_switch = switch(WHERE)
TORCH = Library(
    __name__,
    "torch",
    recognised="`Module.__call__` of the outermost module: eager, scripted, traced, compiled, exported",
    not_recognised="a compiled function; a module without parameters, buffers and code of its own, such as a transform",
)
# A module of these alone, without parameters and buffers, is a function and no model.
FUNCTIONS = ("torch.nn.", "torch.fx.", "torchvision.transforms.")
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def patch_torch(module: ModuleType) -> None:
    """Wrap the call of a module. Inside another model the wrapper only calls the original."""
    cls = module.nn.Module
    cls.__call__ = _calling(cls.__call__, _is_model)


def _calling(original: Callable[..., Any], is_model: Callable[[Any], bool]) -> Callable[..., Any]:
    """Return a method that is the inference where it is the outermost call and `is_model(module)` holds."""
    torch = sys.modules["torch"]
    compiler = getattr(torch, "compiler", None)  # from torch 2.1 on
    is_compiling = getattr(compiler, "is_compiling", None) or torch.jit.is_scripting
    call = marked(original, _describe)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():  # first: torch.compile reads this function up to here, and must understand it
            return original(self, *args, **kwargs)
        chosen = original
        try:
            if is_outermost(self) and not _switch.off and is_model(self):
                chosen = call
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(WHERE, error)
        return chosen(self, *args, **kwargs)

    return method


def _is_model(module: Any) -> bool:
    own = sys.modules["torch"].nn.Module  # its methods return iterators; a model may override them with lists
    if next(own.parameters(module), None) is not None or next(own.buffers(module), None) is not None:
        return True
    return not all(type(one).__module__.startswith(FUNCTIONS) for one in own.modules(module))


def _describe(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    holds = WRAPPERS.get(type(module).__name__)
    if holds is not None:
        module = getattr(module, holds)
    name = str(vars(module).get("name_or_path") or "")  # transformers: an id, or a folder
    if not name:
        name = module.original_name if hasattr(type(module), "original_name") else type(module).__name__
    elif name[0] in "/.~":
        name = PurePath(name).name
    rows: Any = args[0] if args else next((value for value in kwargs.values() if hasattr(value, "shape")), None)
    if isinstance(rows, Mapping):  # features by name, as a tokenizer returns them
        rows = next(iter(rows.values()), None)
    return description(name, "torch", rows)
