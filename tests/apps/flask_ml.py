"""A plain Flask + scikit-learn service, as its author wrote it: `ml` as far as WSGI goes, nothing of tracing in it."""

import os
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request, send_file, stream_with_context
from sleepy import SleepyModel, fitted_pipeline

app = Flask(__name__)
model = SleepyModel()


@app.get("/health")
def health() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.post("/predict")
@app.post("/async-predict")
def predict() -> Any:
    data = request.get_json()
    time.sleep(data.get("preprocess_s", 0))
    seconds = data.get("inference_s", 0)
    if not isinstance(seconds, int | float):
        return {"detail": "no number"}, 422
    result = model.predict([seconds])
    time.sleep(data.get("postprocess_s", 0))
    return result


@app.post("/pipeline")
def with_pipeline() -> list[int]:
    return [int(label) for label in fitted_pipeline().predict(request.get_json())]


@app.post("/transform")
def transform_only() -> list[int]:
    return list(fitted_pipeline()[0].transform(request.get_json()).shape)


@app.get("/plain")
def plain() -> dict[str, bool]:
    return {"ok": True}


@app.get("/two-calls")
def two_calls() -> dict[str, bool]:
    model.predict([0.02])
    time.sleep(0.02)
    model.predict([0.02])
    return {"ok": True}


@app.get("/raise")
def raise_after() -> None:
    model.predict([0.01])
    raise ValueError("the app's own error")


@app.get("/refuse")
def refuse() -> Any:
    return {"detail": "not now"}, 409


@app.get("/stream")
def stream() -> Response:
    def body() -> Iterator[bytes]:
        for number in range(request.args.get("chunks", 3, int)):
            time.sleep(request.args.get("pause_s", 0.02, float))
            yield f"chunk {number}\n".encode()

    return Response(stream_with_context(body()))


@app.get("/stream-inference")
def stream_inference() -> Response:
    def body() -> Iterator[bytes]:
        for number in range(3):
            model.predict([0.02])
            yield f"token {number}\n".encode()

    return Response(body())


@app.get("/raise-in-stream")
def raise_in_stream() -> Response:
    def body() -> Iterator[bytes]:
        yield b"one\n"
        raise ValueError("in the stream")

    return Response(body())


@app.get("/big/<int:size>")
def big(size: int) -> bytes:
    return b"x" * size


@app.get("/file")
def file() -> Response:
    return send_file(__file__)


@app.post("/echo-length")
def echo_length() -> dict[str, int]:
    return {"bytes": len(request.get_data())}


@app.get("/child-span")
def child_span() -> dict[str, bool]:
    from opentelemetry import trace

    with trace.get_tracer("app").start_as_current_span("child"):
        return {"ok": True}


@app.get("/current-span")
def current_span() -> dict[str, Any]:
    from opentelemetry import trace

    span = trace.get_current_span()
    span.set_attribute("user.note", "set by the handler")
    with trace.get_tracer("app").start_as_current_span("in preprocess"):
        time.sleep(0.01)
    model.predict([0.01])
    with trace.get_tracer("app").start_as_current_span("in postprocess"):
        time.sleep(0.01)
    return {"recording": span.is_recording(), "name": getattr(span, "name", None)}
