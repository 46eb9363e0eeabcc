"""As carriers.py, for servers of WSGI and for daphne's threads."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, Response

SLEEPS_S = 0.25
app = Flask(__name__)
pool = ThreadPoolExecutor(2)


@app.get("/health")
def health() -> str:
    return ""


@app.get("/sleep")
def sleep() -> str:
    time.sleep(SLEEPS_S)  # late: sleep
    return ""


@app.get("/computes")
def computes() -> str:
    until = time.monotonic() + SLEEPS_S
    while time.monotonic() < until:  # late: computes
        sum(range(1000))  # late: computes
    return ""


@app.get("/pool")
def waits_for_pool() -> str:
    pool.submit(of_pool).result()
    return ""


def of_pool() -> None:
    time.sleep(SLEEPS_S)  # late: pool


@app.get("/stream")
def stream() -> Response:
    return Response(chunks())


def chunks() -> Iterator[bytes]:
    yield b"1"
    time.sleep(SLEEPS_S)  # late: stream
    yield b"2"
