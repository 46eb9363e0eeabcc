"""Serve FastAPI with an asynchronous handler and all six stages of a request, to be measured in process.

BENCH_STAGES selects how stages are marked: not at all; by `stagetrace.stage`, only where nothing else can detect them
(a wait, and an inference without a known library); or by three OpenTelemetry spans. BENCH_LIBRARY names an
observability library that the service switches on itself.
"""

from __future__ import annotations

import math
import os
import sys
from importlib import import_module
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.marking import WEIGHTS, marking


class Input(BaseModel):
    """One row."""

    features: list[float]


class Output(BaseModel):
    """The probability that the row belongs to the second class."""

    probability: float


stage = marking(os.environ.get("BENCH_STAGES", ""))
app = FastAPI()


@app.post("/predict")
async def predict(data: Input) -> Output:
    """Score one row. Receiving, parsing and sending are the framework's; the computation is next to nothing."""
    with stage("queue"):
        pass
    with stage("preprocess"):
        row = [value * 2 - 1 for value in data.features]
    with stage("inference"):
        score = sum(weight * value for weight, value in zip(WEIGHTS, row, strict=True))
    with stage("postprocess"):
        return Output(probability=1 / (1 + math.exp(-score)))


if library := os.environ.get("BENCH_LIBRARY"):
    import_module("others").switch_on(library, app)
