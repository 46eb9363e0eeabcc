"""A fraud check behind Flask. Planted: in v2, predictions of one tenant under a lock; it calls the ranker."""

from __future__ import annotations

import os
import threading

import httpx
import numpy as np
from flask import Flask, Response, jsonify, request
from opentelemetry import trace
from sklearn.ensemble import RandomForestClassifier

app = Flask(__name__)
rows = np.random.default_rng(1).normal(size=(300, 8))
model = RandomForestClassifier(10, random_state=1).fit(rows, rows.sum(axis=1) > 0)
explaining = threading.Lock()
ranker = httpx.Client(base_url=os.environ["RANK_URL"], timeout=30)


@app.get("/health")
def health() -> Response:
    return jsonify(ok=True)


@app.post("/check")
def check() -> Response:
    asked = request.get_json()
    version, tenant = request.headers["x-version"], request.headers["x-tenant"]
    span = trace.get_current_span()
    span.set_attribute("version", version)
    span.set_attribute("tenant", tenant)
    ranker.post("/embed", json={"text": "one check", "user": 1})
    score = model.predict_proba(rows[:1])[0][1]
    if version == "v2":
        with explaining:  # F1: others wait here
            if tenant == "initech" and asked["user"] % 5 == 0:
                for _ in range(50):
                    model.predict_proba(rows[:1])
    return jsonify(score=float(score))
