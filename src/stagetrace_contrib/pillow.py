"""Pillow: decoding and transforming images."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.detail import IMAGE_DECODE, IMAGE_TRANSFORM, detailed, details

if TYPE_CHECKING:
    from types import ModuleType

TRANSFORMS = ("convert", "reduce", "resize", "rotate", "thumbnail", "transform", "transpose")


patch_image = details("Image", {IMAGE_TRANSFORM: TRANSFORMS}, "PIL", __name__)  # what makes an image out of another


def patch_files(module: ModuleType) -> None:
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
