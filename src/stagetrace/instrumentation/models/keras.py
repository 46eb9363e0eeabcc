"""Keras 3 and 2, on any back end: a call of a model, its `predict` and `predict_on_batch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.models.base import description, marked
from stagetrace.instrumentation.models.eager import eagerly, first_input

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

METHODS = ("predict", "predict_on_batch")


def patch_keras(module: ModuleType) -> None:
    """Wrap the methods on `Model`, also inherited ones: layers, which are no models, stay as they are."""
    cls = module.Model
    for name in METHODS:
        setattr(cls, name, marked(getattr(cls, name), _describe))
    cls.__call__ = eagerly(cls.__call__, _describe)


def _describe(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    return description(str(model.name), "keras", *first_input(args, kwargs))
