"""A WSGI service whose handlers keep its worker."""

import time
from pathlib import Path

from flask import Flask, request

app = Flask(__name__)


@app.get("/health")
def health() -> str:
    return "ok"


@app.get("/quick")
def quick() -> dict[str, int]:
    return {"at": time.time_ns()}


@app.get("/hold/<how>")
def hold(how: str) -> dict[str, int]:
    if "sign" in request.args:
        Path(request.args["sign"]).touch()
    time.sleep(float(request.args["seconds"]))
    return {"until": time.time_ns()}


@app.get("/bytes")
def some() -> bytes:
    return b"x" * int(request.args["count"])
