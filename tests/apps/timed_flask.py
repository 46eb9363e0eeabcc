"""`flask_ml`, and handlers that measure themselves what they waited for, for comparing."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Response, request
from flask_ml import app, model


@app.post("/timed-upload")
def timed_upload() -> dict[str, float]:
    started = time.time_ns()
    body = request.stream.read()
    read = time.time_ns()
    model.predict([0.2])
    return {"bytes": len(body), "read_ns": read - started, "inference_ns": time.time_ns() - read}


@app.get("/timed-stream")
def timed_stream() -> Response:
    """Send large pieces; the last one says how long the server kept this waiting, and how long it worked."""

    def body() -> Iterator[bytes]:
        kept = worked = 0
        for _ in range(4):
            started = time.time_ns()
            model.predict([0.1])
            done = time.time_ns()
            yield b"x" * 3_000_000
            kept += time.time_ns() - done
            worked += done - started
        yield f"\n{kept} {worked}".encode()

    return Response(body())


@app.get("/hold/<path:folder>")
def hold(folder: str) -> dict[str, bool]:
    """Say that this is here, and wait for a file."""
    here = Path("/", folder)
    (here / f"held-{time.time_ns()}-{os.getpid()}").touch()
    while not (here / "go").exists():
        time.sleep(0.01)
    return {"ok": True}


@app.get("/random")
def at_random() -> Any:
    kind, status = request.args["kind"], int(request.args["status"])
    if kind == "infer":
        model.predict([0.002])
    if kind == "raise":
        raise ValueError("at random")
    if kind in ("stream", "infer-stream", "raise-stream"):

        def body() -> Iterator[bytes]:
            for number in range(5):
                if kind == "infer-stream":
                    model.predict([0.0005])
                if kind == "raise-stream" and number == 3:
                    raise ValueError("at random, later")
                yield b"y" * int(request_size)

        request_size = request.args.get("size", "100")
        return Response(body(), status)
    return {"kind": kind}, status
