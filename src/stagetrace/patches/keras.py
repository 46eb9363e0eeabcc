"""Keras 3 and 2, on any back end: a call of a model, its `predict` and `predict_on_batch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.base import patching
from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.eager import eagerly, first_input

if TYPE_CHECKING:
    from collections.abc import Callable

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


def _predicting(method: Callable[..., Any]) -> Callable[..., Any]:
    return KERAS.wrap(method, METHODS)


def _calling(method: Callable[..., Any]) -> Callable[..., Any]:
    return eagerly(method, KERAS.describe, __name__)


# On `Model`, also inherited ones: layers, which are no models, stay as they are.
patch_keras = patching({**{f"Model.{name}": _predicting for name in METHODS.names}, "Model.__call__": _calling})
