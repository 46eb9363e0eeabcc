"""Images: decoding and transforming by Pillow, OpenCV, torchvision, and the image processors of transformers."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.detail import IMAGE_DECODE, IMAGE_TRANSFORM, add_details, detailed

if TYPE_CHECKING:
    from types import ModuleType

PILLOW_TRANSFORMS = ("convert", "reduce", "resize", "rotate", "thumbnail", "transform", "transpose")
OPENCV_DECODES = ("imdecode", "imdecodemulti", "imread")
OPENCV_TRANSFORMS = ("GaussianBlur", "copyMakeBorder", "cvtColor", "flip", "normalize", "remap", "resize", "rotate")
OPENCV_WARPS = ("warpAffine", "warpPerspective")
TORCHVISION_DECODES = ("decode_avif", "decode_gif", "decode_heic", "decode_image", "decode_jpeg", "decode_png")


def patch_pillow_image(module: ModuleType) -> None:
    """Wrap what makes an image out of another."""
    add_details(module.Image, {IMAGE_TRANSFORM: PILLOW_TRANSFORMS}, "PIL", __name__)


def patch_pillow_files(module: ModuleType) -> None:
    """Wrap `load` of the module's image files: `Image.open` reads no more than the header, the rest is decoded here."""
    base: Any = sys.modules["PIL.ImageFile"].ImageFile
    files: list[Any] = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, base)]
    for cls in files:
        if cls.__module__ == module.__name__ and "load" in vars(cls):
            cls.load = detailed(cls.load, IMAGE_DECODE, "PIL", __name__, when=_is_undecoded)


def _is_undecoded(image: Any) -> bool:
    """Return whether `load` has something to decode: each operation on an image calls it."""
    pixels = vars(image)
    return bool(image.tile) or pixels.get("_im", pixels.get("im")) is None


def patch_opencv(module: ModuleType) -> None:
    """Wrap the module's functions."""
    spans = {IMAGE_DECODE: OPENCV_DECODES, IMAGE_TRANSFORM: (*OPENCV_TRANSFORMS, *OPENCV_WARPS)}
    add_details(module, spans, "cv2", __name__)


def patch_torchvision_io(module: ModuleType) -> None:
    """Wrap the module's functions; torch.jit.script, where it compiles what calls them, reads the original."""
    names = (*TORCHVISION_DECODES, "decode_webp", "read_image")
    originals = {name: vars(module)[name] for name in names if name in vars(module)}
    add_details(module, {IMAGE_DECODE: names}, "torchvision", __name__)
    for name, original in originals.items():
        vars(vars(module)[name]).update(__script_if_tracing_wrapper=True, __original_fn=original)


def patch_torchvision_v1(module: ModuleType) -> None:
    """Wrap those transforms that are no modules."""
    for cls in (module.Compose, module.ToTensor, module.PILToTensor):
        add_details(cls, {IMAGE_TRANSFORM: ("__call__",)}, "torchvision", __name__)


def patch_torchvision_v2(module: ModuleType) -> None:
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


def patch_transformers(module: ModuleType) -> None:
    """Wrap the call of an image processor, fast or slow."""
    add_details(module.BaseImageProcessor, {IMAGE_TRANSFORM: ("__call__",)}, "transformers", __name__)
