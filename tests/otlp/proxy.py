"""A proxy on a loopback port: it forwards requests, opens tunnels, and keeps what it was asked for."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator


class Proxy(ThreadingHTTPServer):
    """`asked` has method, target, Host and Proxy-Authorization of each request; whatever it names is at `port`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, wants: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.wants = wants  # Proxy-Authorization, without which it refuses
        self.asked: list[tuple[str, str, str | None, str | None]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Print nothing: clients disconnect as they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _is_refused(self) -> bool:
        asked = self.headers["proxy-authorization"]
        self.server.asked.append((self.command, self.path, self.headers["host"], asked))
        if self.server.wants in ("", asked):
            return False
        self.send_response(407)
        self.send_header("content-length", "0")
        self.end_headers()
        self.close_connection = True
        return True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self._is_refused():
            return
        to = urlsplit(self.path)
        upstream = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        upstream.request("POST", to._replace(scheme="", netloc="").geturl(), body, headers)
        response = upstream.getresponse()
        content = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    def do_CONNECT(self) -> None:
        if self._is_refused():
            return
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with socket.create_connection(("127.0.0.1", self.server.port)) as upstream:
            back = threading.Thread(target=_pump, args=(upstream, self.connection), daemon=True)
            back.start()
            _pump(self.connection, upstream)
            back.join(30)

    def log_message(self, *_: Any) -> None:
        pass


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def run_proxy(port: int, wants: str = "") -> Iterator[Proxy]:
    """Run one in front of a port until the block ends."""
    with Proxy(port, wants) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
