"""OpenCV: decoding and transforming images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.instrumentation.detail import IMAGE_DECODE, IMAGE_TRANSFORM, add_details

if TYPE_CHECKING:
    from types import ModuleType

DECODES = ("imdecode", "imdecodemulti", "imread")
TRANSFORMS = ("GaussianBlur", "copyMakeBorder", "cvtColor", "flip", "normalize", "remap", "resize", "rotate")
WARPS = ("warpAffine", "warpPerspective")


def patch_cv2(module: ModuleType) -> None:
    """Wrap the module's functions."""
    spans = {IMAGE_DECODE: DECODES, IMAGE_TRANSFORM: (*TRANSFORMS, *WARPS)}
    add_details(module, spans, "cv2", __name__)
