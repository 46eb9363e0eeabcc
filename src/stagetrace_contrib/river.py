"""river: models that learn from one observation at a time, and predict one."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import TRAIN, Calls, Library, Shape, first_argument

PREDICTS = (
    *("predict_one", "predict_proba_one", "predict_many", "predict_proba_many", "score_one", "forecast", "rank"),
)
LEARNS = ("learn_one", "learn_many")  # some predict, in order to learn


def _name(model: Any) -> str:
    steps = getattr(model, "steps", None)  # of a pipeline, whose last step is the model
    return type(next(reversed(steps.values())) if steps else model).__name__


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = first_argument(args, kwargs)
    if isinstance(x, dict):
        return Shape((1, len(x)))
    return x if hasattr(x, "shape") else None  # a frame; a user, of a recommender


RIVER = Library(__name__, "river", name=_name, rows=_rows)
patch_base = RIVER.patch(Calls("Base", PREDICTS, derived=True), Calls("Base", LEARNS, TRAIN, derived=True))
