"""Model libraries without a patch: where one is used, that is logged, with what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.guard import guarded
from stagetrace.system.import_hooks import finder

if TYPE_CHECKING:
    from collections.abc import Iterable

# A library, as it is imported -> other libraries that import it without using its models. Libraries that run their
# models by torch, onnxruntime or another patched library are not listed.
MODELS: Final[dict[str, tuple[str, ...]]] = {
    "MNN": (),
    "coremltools": (),
    "cuml": (),
    "exllamav2": (),
    "flax": (),
    "h2o": (),
    "jax": ("keras", "tensorflow"),
    "mlx": (),
    "mxnet": ("thinc",),
    "ncnn": (),
    "onnxruntime_genai": (),
    "paddle": (),
    "pywhispercpp": (),
    "tensorrt": (),
    "tensorrt_llm": (),
    "tflite_runtime": (),
    "tinygrad": (),
}
REMEDY: Final = "wrap what predicts by stagetrace.instrument(function, model=..., version=...) (docs/marking.md)"
_logged: set[str] = set()


def imported() -> list[str]:
    """Return which of these libraries the process has imported; none that another distribution's patch knows."""
    patched = {name.partition(".")[0] for name in finder.patched}
    return [
        name
        for name, by in MODELS.items()
        if name in sys.modules and name not in patched and not any(one in sys.modules for one in by)
    ]


def message(names: Iterable[str]) -> str:
    """Return the message that model calls of these libraries are not recognised."""
    return f"model calls of {', '.join(names)}, imported here, are not recognised: their time counts as `handler`"


@guarded
def log_new() -> None:
    """Log the message for the libraries that were imported since the last call."""
    new = [name for name in imported() if name not in _logged]
    if new:
        _logged.update(new)
        log.info(f"{message(new)}; {REMEDY}.")
