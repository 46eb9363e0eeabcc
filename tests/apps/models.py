"""Models of many kinds behind one route: `GET /case/NAME` runs one call and answers with what it returned."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
import xgboost
from cases import error_of, serve
from skl2onnx import to_onnx
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, LabelEncoder, StandardScaler
from sklearn.svm import OneClassSVM

x, y = load_iris(return_X_y=True)
x = x.astype(np.float32)
rows = x[:5]
many = np.resize(x, (1_000_000, 4))  # of which a transform takes far longer than the answer does


class ScoresMixin:
    """Offers a method to estimators without being one."""

    def predict(self, data: Any) -> Any:
        return np.zeros(len(data))


class FromMixin(ScoresMixin, BaseEstimator):
    pass


class Overrides(LogisticRegression):
    """Calls its parent's method from its own of the same name."""

    def predict(self, data: Any) -> Any:
        return super().predict(data) * 2


class Lonely(ClassifierMixin, BaseEstimator):
    def predict(self, data: Any) -> Any:
        raise ValueError(f"cannot score {len(data)} rows")


class Embedder(TransformerMixin, BaseEstimator):
    """A person's own, which takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def transform(self, data: Any) -> Any:
        time.sleep(self.seconds)
        return data


class OwnScaler(StandardScaler):
    def transform(self, data: Any) -> Any:  # type: ignore[override]
        return super().transform(data)


class OwnXgboost(xgboost.XGBClassifier):
    """A user's, whose framework is xgboost."""


class OwnLightgbm(lightgbm.LGBMClassifier):
    pass


def own_model(data: Any) -> Any:
    """A model that nobody can know as one."""
    time.sleep(0.08)
    return data.sum(axis=1)


logistic = LogisticRegression().fit(x, y)
session = onnxruntime.InferenceSession(to_onnx(logistic, x[:1], options={"zipmap": False}).SerializeToString())
feed = {"X": rows}
gradient_boosted = xgboost.XGBClassifier(n_estimators=5).fit(x, y)
scaler = StandardScaler().fit(x)
columns = ColumnTransformer([("s", scaler, [0, 1])], remainder="passthrough").fit(x)
light = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(x, y)


def late_class() -> Any:
    class DefinedInTheRequest(BaseEstimator):
        def predict(self, data: Any) -> Any:
            return data.sum(axis=1)

    return DefinedInTheRequest().predict(rows)


def run_async() -> Any:
    done = threading.Event()
    box: list[Any] = []

    def callback(results: Any, *_: Any) -> None:
        box.extend(results)
        done.set()

    session.run_async(["label"], feed, callback, None)
    done.wait(10)
    return box[0]


def iobinding() -> Any:
    binding = session.io_binding()
    binding.bind_cpu_input("X", rows)
    binding.bind_output("label")
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0]


def bound_value() -> Any:
    binding = session.io_binding()
    binding.bind_cpu_input("X", rows[:2])
    binding.clear_binding_inputs()
    binding.bind_ortvalue_input(name="X", ortvalue=onnxruntime.OrtValue.ortvalue_from_numpy(rows))
    binding.bind_output("label")
    session.run_with_iobinding(iobinding=binding)
    return binding.copy_outputs_to_cpu()[0]


def run_with_own_values() -> Any:
    values = {"X": onnxruntime.OrtValue.ortvalue_from_numpy(rows)}
    return session.run_with_ort_values(["label"], values)[0].numpy()


CASES: dict[str, Callable[[], Any]] = {
    "logistic": lambda estimator=logistic: estimator.predict(rows),
    "logistic-proba": lambda estimator=logistic: estimator.predict_proba(X=rows),
    "regression": lambda estimator=LinearRegression().fit(x, y): estimator.predict(rows),
    "forest-parallel": lambda e=RandomForestClassifier(20, n_jobs=2, random_state=0).fit(x, y): e.predict(rows),
    "stacking": lambda e=StackingClassifier([("l", logistic)], cv="prefit").fit(x, y): e.predict(rows),
    "kmeans": lambda estimator=KMeans(3, n_init=1, random_state=0).fit(x): estimator.predict(rows),
    "neighbors": lambda estimator=NearestNeighbors(n_neighbors=2).fit(x): estimator.kneighbors(rows)[0],
    "one-class": lambda estimator=OneClassSVM().fit(x): estimator.score_samples(rows),
    "available-if": lambda e=SGDClassifier(loss="log_loss", random_state=0).fit(x, y): e.predict_proba(rows),
    "not-available": lambda e=SGDClassifier(loss="hinge", random_state=0).fit(x, y): [hasattr(e, "predict_proba")],
    "pipeline": lambda e=make_pipeline(StandardScaler(), PCA(2), LogisticRegression()).fit(x, y): e.predict(rows),
    "columns": lambda e=make_pipeline(ColumnTransformer([("s", StandardScaler(), [0, 1])], remainder="passthrough"), LogisticRegression()).fit(x, y): (
        e.predict(rows)
    ),
    "grid-search": lambda e=GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [1]}, cv=2).fit(x, y): (
        e.predict(rows)
    ),
    "transformer": lambda estimator=PCA(2).fit(x): estimator.transform(many.repeat(4, axis=0))[:5],
    "transformers": lambda e=make_pipeline(StandardScaler(), PCA(2)).fit(x): e.transform(many.repeat(4, axis=0))[:5],
    "distances": lambda estimator=KMeans(3, n_init=1, random_state=0).fit(x): estimator.transform(many)[:5],
    "own-transformer": lambda: LabelEncoder().fit([1, 2]).inverse_transform(Embedder(0.3).transform([0, 1])),
    "scaled-logistic": lambda e=LogisticRegression().fit(scaler.transform(x), y): e.predict(scaler.transform(rows)),
    "scaled-xgboost": lambda: gradient_boosted.get_booster().predict(xgboost.DMatrix(scaler.transform(rows))),
    "scaled-own": lambda: own_model(scaler.transform(rows)),
    "own-scaler-own": lambda e=OwnScaler().fit(x): own_model(e.transform(rows)),
    "embedded-own": lambda: own_model(Embedder(0.01).transform(rows)),
    "decoded-own": lambda e=PCA(2).fit(x): e.inverse_transform(own_model(rows).repeat(400_000).reshape(-1, 2))[:5],
    "scaler": lambda: scaler.transform(many)[:5],
    "columns-alone": lambda: columns.transform(many)[:5],
    "union": lambda e=make_union(StandardScaler(), PCA(2)).fit(x): e.transform(many)[:5],
    "imputer": lambda e=SimpleImputer().fit(x): e.transform(many)[:5],
    "selector": lambda e=SelectKBest(k=2).fit(x, y): e.transform(many)[:5],
    "any-function": lambda: FunctionTransformer(own_model).transform(rows),
    "vectors": lambda e=TfidfVectorizer().fit(["a good day"]): e.transform(["a good day"] * 10_000)[0].toarray(),
    "mixin": lambda: FromMixin().predict(rows),
    "overrides": lambda estimator=Overrides().fit(x, y): estimator.predict(rows),
    "late-class": late_class,
    "raises": lambda: error_of(lambda: Lonely().predict(rows)),
    "xgboost": lambda: gradient_boosted.predict_proba(rows),
    "xgboost-own": lambda estimator=OwnXgboost(n_estimators=2).fit(x, y): estimator.predict(rows),
    "lightgbm-own": lambda estimator=OwnLightgbm(n_estimators=2, verbose=-1).fit(x, y): estimator.predict_proba(rows),
    "matrix": lambda: [xgboost.DMatrix(many).num_row()],
    "xgboost-booster": lambda: gradient_boosted.get_booster().predict(xgboost.DMatrix(rows)),
    "xgboost-inplace": lambda: gradient_boosted.get_booster().inplace_predict(data=rows),
    "lightgbm": lambda: light.predict_proba(rows),
    "lightgbm-booster": lambda: light.booster_.predict(rows),
    "onnx": lambda: session.run(["label"], feed)[0],
    "onnx-keywords": lambda: session.run(output_names=None, input_feed=feed)[1],
    "onnx-async": run_async,
    "onnx-iobinding": iobinding,
    "onnx-bound-value": bound_value,
    "onnx-own-values": run_with_own_values,
    "onnx-raises": lambda: error_of(lambda: session.run(["label"], {})),
}

app = serve(CASES)


@app.get("/in-task/{name}")
async def in_task(name: str) -> Any:
    result = await asyncio.create_task(asyncio.to_thread(CASES[name]))
    return np.asarray(result).tolist()
