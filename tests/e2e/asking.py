"""Ask an application everything in one go, slow things side by side: `any_bare` over ASGI, `flask_light` over WSGI."""

from __future__ import annotations

import json
import random
import re
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from websockets.sync.client import connect

from heavy import scaled
from sink import SERVER, Received, Request, assert_tiled, request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


RANDOMISED = scaled(100, 300, 1_000)
HOLD_S = 0.6
TRIES = 3  # of what is compared with the truth: a busy machine may be off once, what the code gets wrong is each time
CHUNKS = 300
# A stream with one long pause among short ones.
PAUSES = ",".join([*["0.001"] * 150, "0.3", *["0.001"] * 150])


@dataclass
class Asked:
    """What clients got, by the name of what they did, and what was recorded."""

    answers: dict[str, Any] = field(default_factory=dict)
    spans: list[Received] = field(default_factory=list)
    randomised: dict[str, str] = field(default_factory=dict)  # kind by trace id
    log: str = ""
    code: int = 0  # the exit code

    def request(self, name: str) -> Request:
        """Return what was recorded of a request, tiled and with one entry span."""
        return self.of_trace(trace_id(name))

    def each(self, name: str) -> list[tuple[Request, Any]]:
        """Return what was recorded each time, and what was answered."""
        return [(self.request(one), answer) for one, answer in self.answers.items() if re.fullmatch(f"{name} \\d", one)]

    def of_trace(self, trace: str) -> Request:
        request = request_of([span for span in self.spans if span.trace_id == trace])
        assert_tiled(request)
        return request

    def entries(self, trace: str) -> list[Received]:
        return [span for span in self.spans if span.kind == SERVER and span.trace_id == trace]


def trace_id(name: str) -> str:
    return name.encode().hex().ljust(32, "0")[-32:]


@contextmanager
def asking(
    url: str, target: str, trace: str, method: str = "GET", length: int = 0, *, keep_alive: bool = False
) -> Iterator[socket.socket]:
    """Open a connection and send the head of a request."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n"
        if not keep_alive:
            head += f"Connection: close\r\nContent-Length: {length}\r\n"
        connection.sendall(f"{head}traceparent: 00-{trace}-{secrets.token_hex(8)}-01\r\n\r\n".encode())
        yield connection


def until_begun(url: str) -> None:
    """Return once a request sent before has begun: the loop has taken up later ones."""
    for _ in range(3):
        with asking(url, "/answer", secrets.token_hex(16)) as connection:
            everything(connection)


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def said(answer: bytes) -> Any:
    """Return what the application said in the last line of a body that may be chunked."""
    lines = [line for line in answer.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]
    return json.loads(next(line for line in reversed(lines) if line[:1] in b"[{.0123456789" and line != b"0"))


def plain(url: str, name: str, target: str) -> Any:
    with asking(url, target, trace_id(name)) as connection:
        return everything(connection)


def slow_upload(url: str, name: str) -> Any:
    with asking(url, "/read", trace_id(name), "POST", 3000) as connection:
        for _ in range(3):
            time.sleep(0.5)
            connection.sendall(b"x" * 1000)
        return said(everything(connection))


def slow_reader(url: str, name: str) -> Any:
    with asking(url, "/large?megabytes=30", trace_id(name)) as connection:
        time.sleep(1.5)
        return said(everything(connection))


def slow_stream(url: str, name: str) -> Any:
    return said(plain(url, name, "/stream?pauses=0.3,0.05,0.4"))


def goes_away(url: str, name: str, target: str, *, after_bytes: int = 0) -> None:
    with asking(url, target, trace_id(name)) as connection:
        if after_bytes:
            assert connection.recv(after_bytes)


def goes_away_unheard(url: str, name: str) -> None:
    """Go away while the application works and does not listen; then let it answer."""
    with asking(url, "/released?id=1", trace_id(name)):
        until_begun(url)
    with asking(url, "/release?id=1", secrets.token_hex(16)) as connection:
        everything(connection)


def take(url: str, name: str, target: str, size: int, method: str = "GET") -> bytes:
    """Read the head of a response and `size` bytes of its body, and close; return them."""
    with asking(url, target, trace_id(name), method, keep_alive=True) as connection:
        got = b""
        while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < size:
            part = connection.recv(size + 4096)
            assert part
            got += part
        if size:
            time.sleep(0.05)  # the server learns of what arrived
    return got


def websocket(url: str, name: str, count: int = 3) -> list[Any]:
    """Send messages, and return what comes back: each of them twice."""
    headers = {"traceparent": f"00-{trace_id(name)}-{secrets.token_hex(8)}-01"}
    got: list[Any] = []
    with connect(url.replace("http", "ws") + "/talk", additional_headers=headers) as talk:
        for _ in range(count):
            talk.send("hello")
            got += [talk.recv(), talk.recv()]
    return got


# What each ASGI server is asked, and each WSGI server: the target, how much of the response is read, and the method.
TAKEN = {
    "asgi": {
        "half": ("/announced?size=1000&sent=500", 500, "GET"),
        "half of much": ("/announced?size=30000000&sent=30000000", 1000, "GET"),
        "all": ("/announced?size=1000&sent=1000", 1000, "GET"),
        "nothing to read": ("/announced?size=0&sent=0", 0, "GET"),
        "head alone": ("/announced?size=1000&sent=0", 0, "HEAD"),
        "cancelled after all": ("/cancelled", 1000, "GET"),
    },
    "wsgi": {
        "half": ("/announced?sent=500", 500, "GET"),
        "all": ("/announced?sent=1000", 1000, "GET"),
        "head alone": ("/announced?sent=1000", 0, "HEAD"),
    },
}
STREAMS = {
    "asgi": {"chunks": f"/answer?chunks={CHUNKS}&pause_s=0.001", "chunks and a pause": f"/stream?pauses={PAUSES}"},
    "wsgi": {"chunks": f"/stream?chunks={CHUNKS}"},
}


def drive_each(url: str, asked: Asked, protocol: str) -> None:
    """Ask what every server of a protocol is asked."""
    for name, (target, size, method) in TAKEN[protocol].items():
        asked.answers[name] = take(url, name, target, size, method)
    for name, target in STREAMS[protocol].items():
        asked.answers[name] = plain(url, name, target)


SLOW: dict[str, Callable[[str, str], Any]] = {
    **{f"slow upload {number}": slow_upload for number in range(TRIES)},
    **{f"slow reader {number}": slow_reader for number in range(TRIES)},
    **{f"stream {number}": slow_stream for number in range(TRIES)},
    "gone unheard": goes_away_unheard,
    "gone": lambda url, name: goes_away(url, name, "/gone"),
    "gone in the stream": lambda url, name: goes_away(url, name, "/gone?chunks=1", after_bytes=100),
    "websocket": websocket,
    "nothing": lambda url, name: plain(url, name, "/nothing"),
}


def threads_waiting(url: str, which: str) -> dict[str, Any]:
    """Ask for 41 threads at once where there are 40."""
    with ThreadPoolExecutor(41) as pool:
        names = [f"{which} thread {number}" for number in range(41)]
        answers = pool.map(lambda name: said(plain(url, name, f"/thread?hold_s={HOLD_S}")), names)
        return dict(zip(names, answers, strict=True))


def ask_anything(url: str, number: int) -> tuple[str, str]:
    """Make one request of a random kind; return its trace id and the kind."""
    draw = random.Random(number)
    kind = draw.choice(["plain", "plain", "stream", "head", "before", "within", "upload", "cut", "gone", "gone midway"])
    trace = f"{number:08x}" + secrets.token_hex(12)
    if kind == "plain":
        target = f"/answer?status={draw.choice([200, 201, 204, 301, 404, 405, 422, 500, 503])}&size=0"
    elif kind == "stream":
        target = f"/answer?chunks={draw.randint(2, 6)}&pause_s={draw.choice([0, 0.001, 0.004])}"
    else:
        target = {"before": "/answer?raise=before", "within": "/answer?raise=within&chunks=3"}.get(kind, "/answer")
    if kind in ("upload", "cut"):
        size = draw.randint(1, 200_000)
        with asking(url, "/read", trace, "POST", size) as connection:
            connection.sendall(b"x" * (size if kind == "upload" else size // 2))
            if kind == "upload":
                everything(connection)
    elif kind in ("gone", "gone midway"):
        with asking(url, "/gone?chunks=1" if kind == "gone midway" else "/gone", trace) as connection:
            if kind == "gone midway":
                connection.recv(50)
    else:
        with asking(url, target, trace, "HEAD" if kind == "head" else "GET") as connection:
            everything(connection)
    return trace, kind


def drive_further(url: str, asked: Asked) -> None:
    """Ask what is compared with the application's and the client's own clock, and requests at random."""
    asked.answers["websocket of many"] = websocket(url, "websocket of many", CHUNKS)
    with ThreadPoolExecutor(len(SLOW)) as pool:
        found = pool.map(lambda item: (item[0], item[1](url, item[0])), SLOW.items())
        asked.answers.update(found)
    for which in ("first", "second"):
        asked.answers.update(threads_waiting(url, which))
    with asking(url, "/answer?sleep_s=1", trace_id("waiting")) as waiting:
        until_begun(url)
        asked.answers["blocking"] = said(plain(url, "blocking", "/block?block_s=1.5"))
        everything(waiting)
    with asking(url, "/read", trace_id("tree"), "POST", 100) as connection:
        connection.sendall(b"x" * 100)
        everything(connection)
    with ThreadPoolExecutor(16) as pool:
        asked.randomised.update(pool.map(lambda number: ask_anything(url, number), range(RANDOMISED)))
