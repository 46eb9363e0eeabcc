"""xgboost, lightgbm and catboost: what their own API predicts with. Estimators are for the patch of scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.models.base import description, marked, with_signature

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

# catboost's classes do not derive from scikit-learn's, and each defines methods of its own.
CLASSES = ("Booster", "CatBoost", "CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker")
METHODS = ("predict", "predict_proba", "predict_log_proba", "inplace_predict", "virtual_ensembles_predict")


def patch_boosters(module: ModuleType) -> None:
    """Wrap the methods where they are defined."""
    for owner in filter(None, (getattr(module, name, None) for name in CLASSES)):
        for name in METHODS:
            method = vars(owner).get(name)
            if method is not None:
                setattr(owner, name, with_signature(marked(method, _describe), method))


def _describe(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    framework = type(model).__module__.partition(".")[0]
    rows: Any = args[0] if args else kwargs.get("data")
    batch = rows.num_row() if hasattr(rows, "num_row") else None  # xgboost's DMatrix
    return description(type(model).__name__, framework, rows, batch)
