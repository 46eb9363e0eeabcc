"""xgboost, lightgbm and catboost: what their own API predicts with. Estimators are for the patch of scikit-learn."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import Calls, Library, Shape, first_argument
from stagetrace.semconv import PREPARE

ESTIMATORS = "its estimators, by the patch of scikit-learn"


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    data = first_argument(args, kwargs)
    if hasattr(data, "num_row"):  # xgboost's DMatrix, catboost's Pool
        return Shape((data.num_row(), data.num_col()))
    return data


XGBOOST = Library(__name__, "xgboost", rows=_rows, recognised=ESTIMATORS)
patch_xgboost = XGBOOST.patch(
    Calls("Booster", ("predict", "inplace_predict")), Calls("DMatrix", ("__init__",), PREPARE)
)

LIGHTGBM = Library(__name__, "lightgbm", recognised=ESTIMATORS)
patch_lightgbm = LIGHTGBM.patch(Calls("Booster", ("predict",)))

# Its classes do not derive from scikit-learn's, and each defines methods of its own.
CATBOOST = Library(__name__, "catboost", rows=_rows)
patch_catboost = CATBOOST.patch(
    Calls("CatBoost", ("predict", "virtual_ensembles_predict")),
    Calls("CatBoostClassifier", ("predict", "predict_proba", "predict_log_proba")),
    Calls("CatBoostRegressor", ("predict",)),
    Calls("CatBoostRanker", ("predict",)),
    Calls("Pool", ("__init__",), PREPARE),
)
