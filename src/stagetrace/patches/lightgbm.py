"""lightgbm: what its own API predicts with. Estimators are for the patch of scikit-learn."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library

LIGHTGBM = Library(__name__, "lightgbm", recognised="its estimators, by the patch of scikit-learn")
patch_basic = LIGHTGBM.patch(Calls("Booster", ("predict",)))
