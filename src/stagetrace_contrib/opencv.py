"""OpenCV: decoding and transforming images."""

from __future__ import annotations

from stagetrace.instrumentation.detail import IMAGE_DECODE, IMAGE_TRANSFORM, details

DECODES = ("imdecode", "imdecodemulti", "imread")
TRANSFORMS = ("GaussianBlur", "copyMakeBorder", "cvtColor", "flip", "normalize", "remap", "resize", "rotate")
WARPS = ("warpAffine", "warpPerspective")
spans = {IMAGE_DECODE: DECODES, IMAGE_TRANSFORM: (*TRANSFORMS, *WARPS)}
patch_cv2 = details("", spans, "cv2", __name__)
