"""The Flask service and some more of what handlers do; `/break/NAME` makes one part of stagetrace raise until `/mend`."""

import os
from typing import Any

import breaking
from flask import Flask, request
from flask_ml import app as flask_app
from opentelemetry import trace
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import stagetrace

if os.environ.get("BESIDE") == "a provider of one's own":
    from stock_sdk import set_up

    set_up()
elif os.environ.get("BESIDE") == "an instrumentation of one's own":
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    flask_app.wsgi_app = OpenTelemetryMiddleware(flask_app.wsgi_app)  # type: ignore[method-assign]


@flask_app.get("/break/<path:name>")
def make_broken(name: str) -> str:
    breaking.make_broken(name)
    return "null"


@flask_app.get("/mend")
def mend() -> str:
    breaking.mend()
    return "null"


@flask_app.get("/annotate")
def annotate() -> dict[str, bool]:
    span = trace.get_current_span()
    span.set_attribute("k", "v")
    span.set_attributes({"http.route": "/mine"})
    span.set_status(trace.StatusCode.OK)
    span.update_name("another")
    span.record_exception(ValueError("noticed"))
    with stagetrace.stage("preprocess", k="v"), trace.get_tracer("app").start_as_current_span("child"):
        return {"known": span.get_span_context() is not None}


class OwnError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@flask_app.errorhandler(OwnError)
def on_own(error: OwnError) -> Any:
    import traceback

    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
    return {"type": type(error).__name__, "code": error.code, "frames": frames}, 418


@flask_app.get("/own-error")
def own_error() -> None:
    raise OwnError(7)


@flask_app.post("/lines")
def lines() -> list[int]:
    return [len(line) for line in request.stream]


sub = Flask("sub")


@sub.get("/items/<int:item>")
def item(item: int) -> dict[str, int]:
    return {"item": item}


def plain(_: Any, start_response: Any) -> list[bytes]:
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"written ")
    return [b"and returned"]


app: Any = DispatcherMiddleware(flask_app, {"/sub": sub, "/plain-wsgi": plain})
