"""Models of scikit-learn: a person's own, which takes as long as its first row says, and a pipeline of texts."""

import sys
import time
from functools import cache
from types import ModuleType
from typing import Any

# scikit-learn imports it for functions that a start calls none of: 0.4 of the 0.9 CPU seconds that the import takes.
instead = sys.modules.setdefault("scipy.stats", ModuleType("scipy.stats"))
from sklearn.base import BaseEstimator  # noqa: E402

if instead.__spec__ is None:
    del sys.modules["scipy.stats"]


class SleepyModel(BaseEstimator):
    """A person's own estimator."""

    def predict(self, rows: list[float]) -> list[float]:
        time.sleep(rows[0])
        return rows


@cache
def fitted_pipeline() -> Any:
    """Return a vectoriser with a model behind it, trained by the first call: few services are asked for it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["good day", "bad night", "good good", "bad bad"]
    return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0])
