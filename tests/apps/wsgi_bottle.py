"""Bottle, with other applications mounted in it."""

import warnings
from collections.abc import Iterator
from typing import Any

import flask
from bottle import Bottle

app, inner, other = Bottle(), Bottle(), Bottle()
flasks = flask.Flask(__name__)


@app.get("/health")
def health() -> dict[str, bool]:
    return {"ok": True}


@app.get("/items/<item:int>")
@inner.get("/items/<item:int>")
@other.get("/items/<item:int>")
def number(item: int) -> dict[str, int]:
    return {"item": item}


@flasks.get("/items/<int:item>")
def of_flask(item: int) -> dict[str, int]:
    return {"item": item}


@app.get("/broken")
def broken() -> None:
    raise ValueError("broken")


@app.get("/stream")
def stream() -> Iterator[bytes]:
    yield from [b"piece"] * 3


def plain(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]


app.mount("/inner/", inner)
app.mount("/flask/", flasks)
app.mount("/plain/", plain)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without a slash at its end, as of old
    app.mount("/other", other)
