"""Serve the stalls by Flask."""

from __future__ import annotations

from flask import Flask, request

from benchmarks.stalls.planted import BLOCKING, resize_heap

app = Flask(__name__)


@app.get("/health")
def health() -> str:
    """Report that the service is up."""
    return "ok"


@app.post("/heap")
def heap() -> str:
    """Keep so many objects."""
    resize_heap(int(request.args["objects"]))
    return "ok"


@app.get("/stall/<stall>")
def stall(stall: str) -> str:
    """Stall in the worker, or in a thread of it."""
    BLOCKING[stall](float(request.args["ms"]))
    return "ok"
