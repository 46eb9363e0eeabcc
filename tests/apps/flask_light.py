"""A Flask service without a model, which starts in no time."""

import os
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request, stream_with_context

app = Flask(__name__)


@app.get("/health")
def health() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.post("/predict")
def predict() -> Any:
    time.sleep(request.get_json().get("inference_s", 0))
    return [0]


@app.get("/stream")
def stream() -> Response:
    def body() -> Iterator[bytes]:
        for _ in range(request.args.get("chunks", 3, int)):
            time.sleep(0.001)
            yield b"x" * 10

    return Response(stream_with_context(body()))


@app.get("/announced")
def announced() -> Response:
    """Announce 1000 bytes, send `sent` of them at once, and go on for a while: with nothing, or the rest.

    It ends before the stream that is asked for after it: a server that SIGTERM kills loses what it still answers.
    """
    sent = int(request.args["sent"])

    def body() -> Iterator[bytes]:
        yield b"x" * sent
        for _ in range(5):
            time.sleep(0.05)
            yield b"x" * ((1000 - sent) // 5)

    return Response(body(), headers={"Content-Length": "1000"})
