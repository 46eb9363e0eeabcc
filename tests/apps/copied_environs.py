"""WSGI applications behind a middleware that copies the environ, as the path's first part says; its second: whose."""

import copy
import importlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

STREAMS = ("wsgi.errors", "waitress.client_disconnected")  # which can be neither copied nor pickled
INPUT = "wsgi.input"


def restored(environ: Any, keys: Any) -> Any:
    plain = pickle.loads(pickle.dumps({key: environ[key] for key in keys}))  # noqa: S301
    return {**environ, **plain}


def deeply(environ: Any) -> Any:
    rest = {key: value for key, value in environ.items() if key not in STREAMS}
    return {**copy.deepcopy(rest), **{key: environ[key] for key in STREAMS}}


KINDS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda environ: restored(environ, environ.keys() - {*STREAMS, INPUT, "wsgi.file_wrapper"}),
    "pickled-input": lambda environ: restored(environ, environ.keys() & {INPUT}),
    "deepcopy": deeply,
    "copied-values": lambda environ: (
        {key: copy.copy(value) for key, value in environ.items() if key not in STREAMS}
        | {key: environ[key] for key in STREAMS}
    ),
    "spread": lambda environ: {**environ},
}


def app(environ: Any, start_response: Any) -> Any:
    if environ["PATH_INFO"] == "/health":
        start_response("200 OK", [])
        return [b"ok"]
    _, kind, name, rest = environ["PATH_INFO"].split("/", 3)
    copied = KINDS[kind](environ)
    copied["PATH_INFO"] = f"/{rest}"
    if name == "plain":
        return echo(copied, start_response)
    return importlib.import_module(name).app(copied, start_response)


def echo(environ: Any, start_response: Any) -> Any:
    said = environ[INPUT].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("content-type", "text/plain")], sys.exc_info() if sys.exc_info()[0] else None)
    return [said]
