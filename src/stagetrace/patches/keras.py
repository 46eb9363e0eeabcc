"""Keras 3 and 2, on any back end: a call of a model, its `predict` and `predict_on_batch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.eager import eagerly, first_input

if TYPE_CHECKING:
    from types import ModuleType

KERAS = Library(
    __name__,
    "keras",
    name=lambda model: str(model.name),
    rows=first_input,
    is_flat=True,
    recognised="`Model.__call__`, `Model.predict`, `Model.predict_on_batch`, of keras and tf_keras, on each back end",
    not_recognised="a layer that is called outside a model",
)
METHODS = Calls("Model", ("predict", "predict_on_batch"))


def patch_keras(module: ModuleType) -> None:
    """Wrap the methods on `Model`, also inherited ones: layers, which are no models, stay as they are."""
    cls = module.Model
    for name in METHODS.names:
        setattr(cls, name, KERAS.wrap(getattr(cls, name), METHODS))
    cls.__call__ = eagerly(cls.__call__, KERAS.describe, __name__)
