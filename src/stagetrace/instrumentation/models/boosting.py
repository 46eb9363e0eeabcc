"""xgboost, lightgbm and catboost: what their own API predicts with. Estimators are for the patch of scikit-learn."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import Calls, Library, Shape, first_argument

ESTIMATORS = "its estimators, by the patch of scikit-learn"


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    data = first_argument(args, kwargs)
    return Shape((data.num_row(), data.num_col())) if hasattr(data, "num_row") else data  # xgboost's DMatrix


XGBOOST = Library(__name__, "xgboost", rows=_rows, recognised=ESTIMATORS)
patch_xgboost = XGBOOST.patch(Calls("Booster", ("predict", "inplace_predict")))

LIGHTGBM = Library(__name__, "lightgbm", recognised=ESTIMATORS)
patch_lightgbm = LIGHTGBM.patch(Calls("Booster", ("predict",)))

# Its classes do not derive from scikit-learn's, and each defines methods of its own.
CATBOOST = Library(__name__, "catboost")
patch_catboost = CATBOOST.patch(
    Calls("CatBoost", ("predict", "virtual_ensembles_predict")),
    Calls("CatBoostClassifier", ("predict", "predict_proba", "predict_log_proba")),
    Calls("CatBoostRegressor", ("predict",)),
    Calls("CatBoostRanker", ("predict",)),
)
