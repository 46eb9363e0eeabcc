"""A Flask application."""

from flask import Flask, Response, jsonify, request
from work import WORK

app = Flask(__name__)


@app.post("/echo")
def echo() -> Response:
    """Return what is posted."""
    return jsonify(request.get_json())


@app.get("/<name>")
def work(name: str) -> bytes:
    """Answer as `WORK` does."""
    return WORK[f"/{name}"]()
