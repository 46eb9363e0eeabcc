"""Models of libraries that are compiled at their installation, or take long to import: `GET /case/NAME` runs a call."""

import copy
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fasttext
import hnswlib
import numpy as np
import pandas as pd
import tl2cgen
import treelite
from cases import error_of, serve
from prophet import Prophet
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression

random = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())
rows = random.normal(size=(5, 3)).astype(np.float32)

days = pd.DataFrame({"ds": pd.date_range("2026-01-01", periods=30), "y": np.arange(30.0)})
prophet = Prophet(weekly_seasonality=False, yearly_seasonality=False, uncertainty_samples=0).fit(days, seed=0)

(folder / "texts.txt").write_text("__label__good a good day\n__label__bad a bad night\n" * 100)


def fast_text() -> Any:
    """Return a model: its training fails now and then, by numbers that it has not set."""
    for _ in range(100):
        with suppress(RuntimeError):
            return fasttext.train_supervised(str(folder / "texts.txt"), dim=4, epoch=1, lr=0.05, thread=1, verbose=0)
    raise AssertionError


text = fast_text()

vectors = random.normal(size=(5_000, 64)).astype(np.float32)
index = hnswlib.Index(space="l2", dim=64)
index.init_index(max_elements=5_000, random_seed=0)
index.add_items(vectors, num_threads=1)
linear = LinearRegression().fit(vectors[:100], vectors[:100])

trained = RandomForestRegressor(2, max_depth=2, random_state=0).fit(random.normal(size=(50, 3)), np.arange(50.0))
tl2cgen.export_lib(treelite.sklearn.import_model(trained), toolchain="gcc", libpath=folder / "tree.so", params={})
compiled = tl2cgen.Predictor(folder / "tree.so", nthread=1)


CASES: dict[str, Callable[[], Any]] = {
    "prophet": lambda: prophet.predict(days[:4])["yhat"],
    "prophet-copied": lambda: copy.deepcopy(prophet).predict(days[:4])["yhat"],
    "prophet-raises": lambda: error_of(lambda: Prophet().predict(days)),
    "fasttext": lambda: error_of(lambda: text.predict("a good day")[0]),  # NumPy 2 is too new for it
    "fasttext-list": lambda: [len(labels) for labels in text.predict(["a good day", "a bad night"])[0]],
    "fasttext-vector": lambda: text.get_sentence_vector("a good day").shape,
    "fasttext-word": lambda: text.get_word_vector("good").shape,
    "hnswlib": lambda: index.knn_query(vectors, k=2, num_threads=1)[0][:5],
    "hnswlib-after-model": lambda: index.knn_query(linear.predict(vectors[:3]), k=2, num_threads=1)[0],
    "tl2cgen": lambda: compiled.predict(tl2cgen.DMatrix(rows)),
}

app = serve(CASES)
