"""A Flask service without a model, which starts in no time."""

import os
import time
from typing import Any

from flask import Flask, request

app = Flask(__name__)


@app.get("/health")
def health() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.post("/predict")
def predict() -> Any:
    time.sleep(request.get_json().get("inference_s", 0))
    return [0]
