"""Serve the same model over WSGI, with a worker that handles one request after another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from benchmarks.causes.app import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

model = Model()


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]) -> Iterable[bytes]:
    """Score rows; `/hold` blocks the worker."""
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    if environ["PATH_INFO"] == "/hold":
        time.sleep(int(query["ms"]) / 1e3)
    elif environ["PATH_INFO"] == "/predict":
        model.predict([0] * int(query.get("rows", "2")))
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", "2")])
    return [b"ok"]
