"""torchvision: decoding and transforming images."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.detail import IMAGE_DECODE, IMAGE_TRANSFORM, add_details, detailed

if TYPE_CHECKING:
    from types import ModuleType

DECODES = ("decode_avif", "decode_gif", "decode_heic", "decode_image", "decode_jpeg", "decode_png")


def patch_io(module: ModuleType) -> None:
    """Wrap the module's functions; torch.jit.script, where it compiles what calls them, reads the original."""
    names = (*DECODES, "decode_webp", "read_image")
    originals = {name: vars(module)[name] for name in names if name in vars(module)}
    add_details(module, {IMAGE_DECODE: names}, "torchvision", __name__)
    for name, original in originals.items():
        vars(vars(module)[name]).update(__script_if_tracing_wrapper=True, __original_fn=original)


def patch_transforms(module: ModuleType) -> None:
    """Wrap those transforms that are no modules."""
    for cls in (module.Compose, module.ToTensor, module.PILToTensor):
        add_details(cls, {IMAGE_TRANSFORM: ("__call__",)}, "torchvision", __name__)


def patch_transforms_v2(module: ModuleType) -> None:
    """Wrap `forward` of a transform, or of several: their call is that of any torch module."""
    cls = getattr(module, "Compose", None) or module.Transform
    cls.forward = _unless_compiling(cls.forward)


def _unless_compiling(original: Any) -> Any:
    called = detailed(original, IMAGE_TRANSFORM, "torchvision", __name__)
    is_compiling = sys.modules["torch"].compiler.is_compiling

    @functools.wraps(original)
    def forward(self: Any, *inputs: Any) -> Any:
        if is_compiling():  # torch.compile reads this function up to here, and must understand it
            return original(self, *inputs)
        return called(self, *inputs)

    return forward
