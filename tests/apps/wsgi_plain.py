"""WSGI applications of no framework, each in another way that PEP 3333 allows, checked by the standard library's validator."""

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

from opentelemetry import trace
from timed_flask import app as flask

HEAD = [("Content-Type", "text/plain")]


def as_list(_: Any, start_response: Any) -> list[bytes]:
    with trace.get_tracer("app").start_as_current_span("child"):
        start_response("200 OK", [*HEAD])
    return [b"one", b"two"]


def as_one(_: Any, start_response: Any) -> list[bytes]:
    start_response("201 Created", [*HEAD])
    return [b"whole"]


def by_write(_: Any, start_response: Any) -> list[bytes]:
    write = start_response("200 OK", [*HEAD])
    write(b"written ")
    write(b"first")
    return [b", then returned"]


def late(_: Any, start_response: Any) -> Iterator[bytes]:
    start_response("202 Accepted", [*HEAD])
    yield b"begun "
    with trace.get_tracer("app").start_as_current_span("child"):
        yield b"as it was gone through"


class Closing:
    """Iterable without a length, which says as it is closed what was seen then."""

    def __init__(self) -> None:
        self.chunks = iter([b"a", b"b"])

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def close(self) -> None:
        with trace.get_tracer("app").start_as_current_span("closing"):
            pass


def closing(_: Any, start_response: Any) -> Closing:
    start_response("200 OK", [*HEAD])
    return Closing()


def again(_: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [*HEAD])
    try:
        {}["found out in time"]
    except KeyError:
        start_response("503 Not now", [*HEAD], sys.exc_info())
    return [b"another answer"]


def body_line_by_line(environ: Any, start_response: Any) -> list[bytes]:
    lines = [environ["wsgi.input"].readline(100), *environ["wsgi.input"]]
    start_response("200 OK", [*HEAD])
    return [str(len(lines)).encode(), b"".join(lines)]


def nothing(_: Any, start_response: Any) -> list[bytes]:
    start_response("204 No Content", [])
    return []


def raises(_: Any, __: Any) -> list[bytes]:
    raise ValueError("of a plain application")


CHECKED = {
    f"/{app.__name__}": validator(app)
    for app in (as_list, as_one, by_write, late, closing, again, body_line_by_line, nothing, raises)
}


def file(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [*HEAD])
    return environ["wsgi.file_wrapper"](Path(__file__).open("rb"))


def file_in_memory(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [*HEAD])
    return environ["wsgi.file_wrapper"](BytesIO(b"in memory" * 1000), 512)


FILES = {"/wrapped_file": file, "/wrapped_file_in_memory": file_in_memory}


def app(environ: Any, start_response: Any) -> Any:
    """Call one of these by its name, and `timed_flask` by all other paths."""
    path = environ["PATH_INFO"]
    return (CHECKED.get(path) or FILES.get(path) or flask)(environ, start_response)
