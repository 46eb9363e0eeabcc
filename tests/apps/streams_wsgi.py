"""As streams.py behind WSGI, in plain generators."""

import time
from collections.abc import Iterator
from typing import Any

import computing

LATE_S = 0.3


def computes() -> Iterator[bytes]:
    yield b"1"
    computing.compute(LATE_S)
    yield b"2"


def sleeps() -> Iterator[bytes]:
    yield b"1"
    time.sleep(LATE_S)
    yield b"2"


def first() -> Iterator[bytes]:
    computing.compute(LATE_S)
    yield b"1"
    yield b"2"


def much() -> Iterator[bytes]:
    for _ in range(200):
        yield bytes(1 << 18)


def app(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("content-type", "text/plain")])
    name = environ["PATH_INFO"].rpartition("/")[2]
    return (
        [b"ok"] if name == "health" else {"computes": computes, "sleeps": sleeps, "first": first, "much": much}[name]()
    )
