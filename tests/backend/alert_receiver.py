"""A receiver of alerts over HTTP, on loopback: it keeps what is posted, and responds as a test wants it to."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Posted:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class AlertReceiver:
    """What was posted so far; `respond` may do anything with the connection, and returns the status."""

    url: str
    posted: list[Posted] = field(default_factory=list)
    respond: Callable[[BaseHTTPRequestHandler], int] = lambda _handler: 200
    headers: dict[str, str] = field(default_factory=dict)  # of each response
    page: Callable[[], str] = str  # what a GET gets

    def alerts(self) -> list[tuple[str, str]]:
        """Return status and objective of each alert of a webhook, in the order in which they came."""
        documents = [one.document for one in list(self.posted)]
        return [(one["status"], one["labels"]["sla_objective"]) for each in documents for one in each["alerts"]]


@contextmanager
def alert_receiver() -> Iterator[AlertReceiver]:
    receiver = AlertReceiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            receiver.posted.append(Posted(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status = receiver.respond(self)
            if status:
                self.send_response(status)
                for name, text in {"content-length": "0", **receiver.headers}.items():
                    self.send_header(name, text)
                self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(receiver.page().encode())

        def log_message(self, *_args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
