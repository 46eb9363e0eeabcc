"""Serve a small FastAPI and scikit-learn model, as its author would write it, without tracing.

BENCH_MODEL selects the model: a logistic regression by default, or `forest`, a random forest of the default size, which
computes for about ten times as long.
"""

from __future__ import annotations

import os

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES = 8


class Input(BaseModel):
    """One row."""

    features: list[float]


class Output(BaseModel):
    """The probability that the row belongs to the second class."""

    probability: float


app = FastAPI()
chance = np.random.default_rng(7)
rows = chance.normal(size=(500, FEATURES))
is_forest = os.environ.get("BENCH_MODEL") == "forest"
classifier = RandomForestClassifier(random_state=7) if is_forest else LogisticRegression()
model = make_pipeline(StandardScaler(), classifier).fit(rows, rows.sum(axis=1) > 0)


@app.get("/health")
def health() -> dict[str, bool]:
    """Report that the model is loaded."""
    return {"ok": True}


@app.post("/predict")
def predict(data: Input) -> Output:
    """Score one row, in a worker thread as FastAPI runs synchronous handlers."""
    row = np.asarray(data.features, dtype=float).reshape(1, -1)
    return Output(probability=float(model.predict_proba(row)[0, 1]))
