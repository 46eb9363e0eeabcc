"""Register a model of scikit-learn in the registry that MLFLOW_TRACKING_URI names, as `flowers`, version 1."""

import mlflow
import numpy as np
from sklearn.linear_model import LogisticRegression

mlflow.sklearn.log_model(
    LogisticRegression().fit(np.eye(4), [0, 1, 0, 1]), name="anything", registered_model_name="flowers"
)
