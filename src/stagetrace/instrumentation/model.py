"""What all model libraries share: the outermost call inside a request is the inference, what it calls is not."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import recording
from stagetrace.semconv import INFERENCE, ML_BATCH_SIZE, ML_FRAMEWORK, ML_MODEL_NAME, TRANSFORM

if TYPE_CHECKING:
    from collections.abc import Callable

_inside: ContextVar[bool] = ContextVar("stagetrace.inside_model", default=False)


def marked(call: Callable[[], Any], describe: Callable[[], dict[str, Any]], activity: str = INFERENCE) -> Any:
    """Run `call` as the inference (or transform) of the current request, if it is the outermost; return its result.

    `describe` gives the attributes of the stage. Outside a recorded request this costs one context look-up.
    """
    timeline = None if _inside.get() else recording()
    if timeline is None:
        return call()
    token = _inside.set(True)
    timeline.begin(activity, _attributes(describe))
    try:
        return call()
    finally:
        timeline.end(activity)
        _inside.reset(token)


def description(name: str, framework: str, rows: Any) -> dict[str, Any]:
    """Return the attributes of one call; `rows` is its first input, of any type."""
    attributes: dict[str, Any] = {ML_MODEL_NAME: name, ML_FRAMEWORK: framework}
    shape = getattr(rows, "shape", None)
    if shape:
        attributes[ML_BATCH_SIZE] = int(shape[0])
    elif isinstance(rows, list | tuple):
        attributes[ML_BATCH_SIZE] = len(rows)
    return attributes


@guarded
def _attributes(describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return describe()


__all__ = ["INFERENCE", "TRANSFORM", "description", "marked"]
