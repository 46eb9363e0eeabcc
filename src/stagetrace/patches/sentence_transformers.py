"""sentence-transformers: `encode` and `predict` are the inference, but for the preprocessing of each batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.instrumentation.base import patching
from stagetrace.instrumentation.models.base import Library, description
from stagetrace.instrumentation.models.device_time import begin_on_device
from stagetrace.instrumentation.models.module_name import device_of, name_of
from stagetrace.instrumentation.models.preparing import preparation, preparing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

METHODS: Final = {
    "SentenceTransformer": "encode",
    "CrossEncoder": "predict",
    "SparseEncoder": "encode",
    "MultiVectorEncoder": "encode",
}
SENTENCE_TRANSFORMERS = Library(
    __name__,
    "sentence_transformers",
    package="sentence-transformers",
    recognised=", ".join(f"`{owner}.{name}`" for owner, name in METHODS.items())
    + ", and what calls these, such as `rank`; `preprocess` of each batch as preprocessing",
    not_recognised="preprocessing in the processes of a `pool`",
)


patch_base = patching({"BaseModel.preprocess": preparation})  # of all models


def patch_model(module: ModuleType) -> None:
    """Wrap the method of the class that this module defines."""
    cls = next(vars(module)[owner] for owner in METHODS if _is_defined(owner, module))
    name = METHODS[cls.__name__]
    setattr(cls, name, preparing(vars(cls)[name], _describe, __name__, begin_on_device))


def _is_defined(owner: str, module: ModuleType) -> bool:
    return getattr(vars(module).get(owner), "__module__", None) == module.__name__


def _describe(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    inner = model.transformers_model
    rows = SENTENCE_TRANSFORMERS.rows(args, kwargs)
    name = name_of(model if inner is None else inner)
    return description(name, SENTENCE_TRANSFORMERS.framework, rows, device=device_of(model), is_flat=True)
