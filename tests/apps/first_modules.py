"""An app with one model that reports which modules were loaded as its first request came, and which are now."""

import sys

from fastapi import FastAPI
from sleepy import SleepyModel

app = FastAPI()
first: list[str] = []


@app.get("/health")
async def health() -> dict[str, list[str]]:
    """Report that it is up."""
    if not first:
        first.extend(sys.modules)
    return {"first": first, "now": [*sys.modules]}


@app.get("/predict")
def predict() -> list[float]:
    """Call the model."""
    return SleepyModel().predict([0])
