"""Multiply matrices in FastAPI's thread pool: BLAS releases the GIL, and has threads of its own."""

from __future__ import annotations

import os
import warnings
from typing import Final

import numpy as np
from fastapi import FastAPI
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from benchmarks.what_if.services.pool import Query, sized_pool

LAYERS: Final = 7 if os.environ.get("FASTER") else 10

warnings.simplefilter("ignore", ConvergenceWarning)
random = np.random.default_rng(0)
samples = random.random((1000, 32))
network = MLPRegressor(hidden_layer_sizes=(512,) * LAYERS, max_iter=1, solver="sgd", random_state=0)
network.fit(samples[:50], samples[:50, 0])


app = FastAPI(lifespan=sized_pool)


@app.post("/predict")
def predict(query: Query) -> dict[str, float]:
    return {"score": float(network.predict(samples[: query.size]).mean())}


print("ready", flush=True)
