"""catboost: its models, of which each class defines methods of its own; none derives from scikit-learn's."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library, rows_of_matrix
from stagetrace.semconv import PREPARE

CATBOOST = Library(__name__, "catboost", rows=rows_of_matrix)
patch_core = CATBOOST.patch(
    Calls("CatBoost", ("predict", "virtual_ensembles_predict")),
    Calls("CatBoostClassifier", ("predict", "predict_proba", "predict_log_proba")),
    Calls("CatBoostRegressor", ("predict",)),
    Calls("CatBoostRanker", ("predict",)),
    Calls("Pool", ("__init__",), PREPARE),
)
