"""Serve what `app_staged` serves, with Flask: the handler computes next to nothing.

BENCH_STAGES selects how stages are marked.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from flask import Flask, request

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.marking import WEIGHTS, marking

stage = marking(os.environ.get("BENCH_STAGES", ""))
app = Flask(__name__)


@app.post("/predict")
def predict() -> dict[str, float]:
    """Score one row. Receiving, parsing and sending are the framework's; the computation is next to nothing."""
    features = request.get_json()["features"]
    with stage("queue"):
        pass
    with stage("preprocess"):
        row = [value * 2 - 1 for value in features]
    with stage("inference"):
        score = sum(weight * value for weight, value in zip(WEIGHTS, row, strict=True))
    with stage("postprocess"):
        return {"probability": 1 / (1 + math.exp(-score))}
