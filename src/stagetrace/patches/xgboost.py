"""xgboost: what its own API predicts with. Estimators are for the patch of scikit-learn."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library, rows_of_matrix
from stagetrace.semconv import PREPARE

XGBOOST = Library(__name__, "xgboost", rows=rows_of_matrix, recognised="its estimators, by the patch of scikit-learn")
patch_core = XGBOOST.patch(Calls("Booster", ("predict", "inplace_predict")), Calls("DMatrix", ("__init__",), PREPARE))
