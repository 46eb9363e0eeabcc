"""Libraries of models whose calls are not recognised: where one is in use, that is said, with what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Iterable

# As they are imported -> what else imports them, without a model of theirs. What runs its models by torch, onnxruntime
# or another library that is patched is none of these.
MODELS: Final[dict[str, tuple[str, ...]]] = {
    "MNN": (),
    "coremltools": (),
    "ctranslate2": (),
    "cuml": (),
    "exllamav2": (),
    "fasttext": (),
    "flax": (),
    "gensim": (),
    "h2o": (),
    "implicit": (),
    "jax": ("keras", "tensorflow"),
    "llama_cpp": (),
    "mlx": (),
    "mxnet": ("thinc",),
    "ncnn": (),
    "onnxruntime_genai": (),
    "openvino": (),
    "paddle": (),
    "prophet": (),
    "pywhispercpp": (),
    "sglang": (),
    "spacy": (),
    "tensorrt": (),
    "tensorrt_llm": (),
    "tflite_runtime": (),
    "tinygrad": (),
    "tl2cgen": (),
    "treelite": (),
    "tritonclient": (),
    "vllm": (),
}
REMEDY: Final = 'mark them by stagetrace.stage("inference", model=..., version=...), a `with` block or a decorator'
_said: set[str] = set()


def imported() -> list[str]:
    """Return which of them this process has imported."""
    return [name for name, by in MODELS.items() if name in sys.modules and not any(one in sys.modules for one in by)]


def said(names: Iterable[str]) -> str:
    """Return that the calls of these are not recognised."""
    return f"model calls of {', '.join(names)}, imported here, are not recognised: their time counts as `handler`"


@guarded
def say_new() -> None:
    """Say it of those that have been imported since the last time."""
    new = [name for name in imported() if name not in _said]
    if new:
        _said.update(new)
        log.info(f"{said(new)}; {REMEDY}.")
