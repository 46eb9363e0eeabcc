"""Predict with a forest in FastAPI's thread pool: bound by CPU, its preprocessing by the GIL."""

from __future__ import annotations

import math
import os
from typing import Final

import numpy as np
from fastapi import FastAPI
from sklearn.ensemble import RandomForestClassifier

from benchmarks.what_if.services.pool import Query, sized_pool

TREES: Final = 77 if os.environ.get("FASTER") else 110
FEATURES: Final = 80

random = np.random.default_rng(0)
samples = random.random((500, FEATURES))
model = RandomForestClassifier(TREES, max_depth=8, random_state=0).fit(samples, samples[:, 0] + samples[:, 1] > 1)


app = FastAPI(lifespan=sized_pool)


@app.post("/predict")
def predict(query: Query) -> dict[str, float]:
    rows = [[math.sin(row * column) ** 2 for column in range(FEATURES)] for row in range(query.size)]
    return {"score": float(model.predict_proba(np.array(rows))[:, 1].mean())}


print("ready", flush=True)
