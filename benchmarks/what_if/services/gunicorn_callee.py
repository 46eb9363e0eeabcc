"""Ask another service and then compute, in gunicorn's sync workers: each has one request at a time."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import requests
from flask import Flask, request
from sklearn.ensemble import RandomForestClassifier

random = np.random.default_rng(0)
samples = random.random((500, 16))
model = RandomForestClassifier(90, max_depth=8, random_state=0).fit(samples, samples[:, 0] > samples[:, 1])
session = requests.Session()

app = Flask(__name__)


@app.get("/health")
def health() -> dict[str, bool]:
    return {"ok": True}


@app.post("/check")
def check() -> dict[str, Any]:
    size = int(request.get_json()["size"])
    asked = session.get(f"http://127.0.0.1:{os.environ['CALLEE_PORT']}/features", params={"us": size}, timeout=30)
    asked.raise_for_status()
    return {"score": float(model.predict_proba(samples[:100])[:, 1].mean())}


print("ready", flush=True)
