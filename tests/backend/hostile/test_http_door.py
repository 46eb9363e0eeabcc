"""The HTTP ports under connections and requests that never end: legal requests beside them are answered."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from backend.door import Door, running
from backend.hostile import probes_http as probes
from backend.processes import until
from backend.running import Up, names_of, post, request, run_up
from backends import LOOPBACK
from pki import make_pki
from stagetrace.backend import silent
from stagetrace.backend.counters import Counters
from stagetrace.backend.http_limits import DEADLINES, Awaited, Closed, Connections, Deadlines, Place, Threads
from stagetrace.backend.http_port import BODY_DEADLINES, BodyDeadlines, HttpServer
from stagetrace.backend.intake import Intake, RequestLimits
from stagetrace.backend.jaeger_query import Queries
from stagetrace.backend.options import Limits, Options
from stagetrace.backend.ports import Access
from stagetrace.backend.query_http import query_app
from stagetrace.backend.receivers import receiver_app
from stagetrace.store.local import LocalReader, LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

SPANS = request("legal").SerializeToString()
MOST = 1024  # connections of a port, by default
REQUESTS = 32  # in work, and waiting for a thread
SHORT = Deadlines(headers=0.3, keep_alive=0.3, reading=0.3)
SHORT_BODY = BodyDeadlines(whole=0.6, step=0.6)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, Path]]:
    """Run a back end for these tests alone; yield it with its log."""
    folder = tmp_path_factory.mktemp("attacked")
    with run_up(folder) as up:
        yield up, folder / "up.log"


def is_served(up: Up) -> None:
    sent = request("beside them", service="beside")
    assert post(up, sent.SerializeToString()).status_code == 200
    trace_id = sent.resource_spans[0].scope_spans[0].spans[0].trace_id.hex()
    assert names_of(up, trace_id) == ["beside them"]
    for port in ("http_port", "query_http_port"):
        assert httpx.head(f"{up.url(port)}/health", timeout=30).status_code == 200


@pytest.mark.smoke
@pytest.mark.parametrize("port", ["http_port", "query_http_port"])
def test_more_silent_connections_than_it_may_have_stop_no_port(attacked: tuple[Up, Path], port: str) -> None:
    up, log = attacked
    closed = [f'stagetrace_closed_connections_total{{reason="{one.value}"}}' for one in (Closed.CROWDED, Closed.SLOW)]
    before = sum(map(up.metric, closed))
    with probes.silent((LOOPBACK, up.ready[port]), MOST + 200):
        is_served(up)
        assert sum(map(up.metric, closed)) - before >= 200
        assert up.metric(f"stagetrace_{port.removesuffix('_port')}_connections") <= MOST
    assert len(log.read_text().splitlines()) < 20


def test_garbage_is_refused_and_does_not_fill_the_log(attacked: tuple[Up, Path]) -> None:
    up, log = attacked
    lines = len(log.read_text().splitlines())
    probes.send_garbage((LOOPBACK, up.ready["http_port"]), 400)
    for port in ("http_port", "query_http_port"):
        probes.send_mutated((LOOPBACK, up.ready[port]), 100, seed=1)
    is_served(up)
    assert up.metric('stagetrace_closed_connections_total{reason="malformed"}') > 200
    assert len(log.read_text().splitlines()) - lines < 20
    assert "Traceback" not in log.read_text()


TOO_MUCH: dict[str, tuple[bytes, int]] = {
    "a header": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 17_000 + b"\r\n\r\n", 431),
    "headers": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: yyyyyy\r\n" * 3000 + b"\r\n", 431),
    "a URL": (b"GET /" + b"y" * 17_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
    "tiny chunks": (probes.post_headers(None) + b"1\r\na\r\n" * 5000, 400),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_headers_and_chunks_have_limits(attacked: tuple[Up, Path], case: str) -> None:
    up, _ = attacked
    content, status = TOO_MUCH[case]
    with probes.open_connections((LOOPBACK, up.ready["http_port"]), 1, content) as (one,):
        assert probes.status_of(one) == status


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStore]:
    """Open one store for all ports of this process."""
    opened = LocalStore.open(tmp_path_factory.mktemp("door") / "data")
    yield opened
    opened.close()


@contextmanager
def receiver(
    store: LocalStore,
    *,
    most: int = MOST,
    threads: int = 4,
    in_flight: int = 64 << 20,
    deadlines: Deadlines = DEADLINES,
    body: BodyDeadlines = BODY_DEADLINES,
) -> Iterator[Door]:
    """Run the OTLP port."""
    counters = Counters()
    intake = Intake(store, counters, Limits(min(in_flight, 64 << 20), in_flight))
    with Threads(threads, REQUESTS) as pool:
        app = receiver_app(intake, Access(), pool, pool, body)
        server = HttpServer(app, Options(store.folder), "http", counters, most=most, deadlines=deadlines)
        with running(server, counters) as door:
            yield door


ATTACKS: dict[str, Callable[[probes.Address], probes.Connected]] = {
    "slow headers": lambda address: probes.slow_headers(address, 40),
    "slow bodies": lambda address: probes.slow_bodies(address, 40),
    "kept alive": lambda address: probes.kept_alive(address, 40),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_requests_that_never_end_make_place_for_others(store: LocalStore, attack: str) -> None:
    with receiver(store, most=32) as door, ATTACKS[attack](door.address):
        for _ in range(3):
            assert door.post(SPANS).status_code == 200
            assert door.is_healthy()
        assert door.closed(Closed.CROWDED) >= 8
        assert len(door.server.connections) <= 32


SLOW: dict[str, Callable[[probes.Address], probes.Connected]] = {
    "silent": lambda address: probes.silent(address, 1),
    "slow headers": lambda address: probes.slow_headers(address, 1, 0.05),
    "kept alive": lambda address: probes.kept_alive(address, 1),
    "the next headers": lambda address: probes.trickling(
        address, 1, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + probes.BEGUN, 0.05
    ),
    "the rest of a refused request": lambda address: probes.trickling(
        address, 1, probes.post_headers(1 << 20, "text/plain"), 0.05
    ),
}


def test_a_client_has_a_deadline_for_whatever_is_awaited_of_it(store: LocalStore) -> None:
    with receiver(store, deadlines=SHORT) as door, ExitStack() as stack:
        attacks = {name: stack.enter_context(attack(door.address)) for name, attack in SLOW.items()}
        for name, (one,) in attacks.items():
            assert probes.received(one)[:9] == (b"" if name in ("silent", "slow headers") else b"HTTP/1.1 "), name
        assert door.closed(Closed.SLOW) >= 4


def test_a_body_has_a_deadline_however_it_trickles(store: LocalStore) -> None:
    with receiver(store, body=SHORT_BODY) as door:
        with probes.slow_bodies(door.address, 1, 0.05) as (one,):
            assert probes.status_of(one) == 408
        assert door.counters.value("refused_requests", "slow") == 1


def test_stalled_bodies_give_their_room_to_others(store: LocalStore) -> None:
    """They hold all bytes that may be held, and are refused so that their clients send again."""
    with (
        receiver(store, in_flight=4 << 20) as door,
        probes.stopped_bodies(door.address, 4, 1 << 20) as stalled,
    ):
        until(lambda: door.counters.value("received_bytes", "http") >= 4 * ((1 << 20) - 1))
        until(lambda: door.post(request("x" * 100_000).SerializeToString()).status_code == 200, within_s=10)
        assert probes.status_of(probes.readable(stalled, 10)[0]) == 429
        assert door.counters.value("refused_requests", "slow") == 0


def test_work_ends_once_its_client_has_disconnected(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    working = threading.Event()

    def append(_self: Intake, _transport: str, _request: bytes, limits: RequestLimits) -> Any:
        while True:
            limits.check()
            working.set()
            time.sleep(0.01)

    monkeypatch.setattr(Intake, "append", append)
    with receiver(store) as door:
        with probes.open_connections(door.address, 1, probes.post_headers(len(SPANS)) + SPANS):
            assert working.wait(30)
        until(lambda: door.counters.value("refused_requests", "abandoned"))


def test_a_query_ends_once_its_client_has_disconnected(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would last for hours."""
    asking = threading.Event()

    def services(reader: LocalReader) -> Any:
        asking.set()
        return reader._all("SELECT count(*) FROM range(1000000000000)")

    monkeypatch.setattr(LocalReader, "services", services)
    counters = Counters()
    with Threads(1, 4) as pool:
        app = query_app(Queries(store, counters), counters, Access(), pool, lambda: "")
        server = HttpServer(app, Options(store.folder), "query-http", counters, most=MOST)
        get = b"GET /api/v3/services HTTP/1.1\r\nhost: localhost\r\n\r\n"
        with running(server, counters) as door:
            with probes.open_connections(door.address, 1, get):
                assert asking.wait(30)
            until(lambda: counters.value("failed_queries", "http"))


def test_requests_that_wait_for_a_thread_are_few_and_health_is_none_of_them(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose clients disconnect make room for others."""
    ending = threading.Event()
    monkeypatch.setattr(Intake, "append", lambda *_: ending.wait(60))
    content = probes.post_headers(len(SPANS)) + SPANS
    with receiver(store, threads=1) as door:
        try:
            with probes.open_connections(door.address, REQUESTS, content):
                until(lambda: door.post(SPANS).status_code == 429)
                assert door.is_healthy()
            until(lambda: door.counters.value("refused_requests", "abandoned") == REQUESTS - 1, within_s=30)
        finally:
            ending.set()


def test_metrics_that_wait_are_few(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = threading.Event()
    monkeypatch.setattr(Intake, "metrics", lambda _: str(ending.wait(60)))
    content = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with receiver(store) as door:
        try:
            with probes.open_connections(door.address, 40, content) as waiting:
                until(lambda: len(probes.readable(waiting)) >= 32)
                assert door.is_healthy()
                assert probes.status_of(probes.readable(waiting)[-1]) == 429
        finally:
            ending.set()


def test_a_new_connection_is_refused_while_all_are_in_work(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = threading.Event()
    monkeypatch.setattr(Intake, "append", lambda *_: ending.wait(60))
    content = probes.post_headers(len(SPANS)) + SPANS
    with receiver(store, most=4, threads=4) as door:
        try:
            with probes.open_connections(door.address, 4, content):
                until(lambda: door.counters.value("requests", "http") == 4)
                with probes.silent(door.address, 1) as (refused,):
                    assert probes.status_of(refused) == 503
        finally:
            ending.set()
        until(door.is_healthy)
        assert door.closed(Closed.REFUSED) == 1


def test_a_response_that_its_client_does_not_read_ends_its_connection(tmp_path: Path) -> None:
    """One that is read, however slowly, does not."""
    content = bytes(8 << 20)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": content})

    counters = Counters()
    server = HttpServer(app, Options(tmp_path), "http", counters, most=MOST, deadlines=Deadlines(reading=1))
    get = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with running(server, counters) as door, probes.open_connections(door.address, 2, get) as (unread, read):
        count = 0
        while chunk := read.recv(1 << 18):
            count += len(chunk)
            time.sleep(0.02)
        assert count > len(content)
        until(lambda: door.closed(Closed.SLOW) == 1)
        assert len(probes.received(unread)) < len(content)


def test_tls_has_the_deadline_of_the_first_headers(tmp_path: Path) -> None:
    _, certificate, key = (make_pki(tmp_path) / name for name in ("ca.pem", "server.pem", "server.key"))

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError

    counters = Counters()
    options = Options(tmp_path, tls_cert=certificate, tls_key=key)
    server = HttpServer(app, options, "http", counters, most=4, deadlines=SHORT)
    with running(server, counters) as door:
        with probes.silent(door.address, 6) as connections:
            assert [probes.received(one) for one in connections] == [b""] * 6
        until(lambda: len(server.connections) == 0)
        probes.send_garbage(door.address, 2)
        until(lambda: sum(map(door.closed, (Closed.CROWDED, Closed.HANDSHAKE, Closed.SLOW))) == 8)


def test_a_port_serves_where_there_is_no_epoll(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silent, "_IS_LINUX", False)
    with receiver(store) as door:
        assert door.post(SPANS).status_code == 200
        with probes.silent(door.address, 2):
            assert door.is_healthy()


def test_a_connection_that_the_kernel_does_not_watch_is_closed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with receiver(store) as door:
        with monkeypatch.context() as patched:
            patched.setattr(silent.Silent, "_control", refuse)
            with probes.silent(door.address, 2) as connections:
                assert [probes.received(one) for one in connections] == [b""] * 2
        assert door.is_healthy()
        until(lambda: len(door.server.connections) == 0)


def test_the_longest_wait_gives_way() -> None:
    """A connection in work does not."""
    dropped: list[str] = []
    connections = Connections(4, Deadlines(), lambda _why: None)

    def add(name: str) -> Place:
        place = Place(lambda: dropped.append(name), lambda: 0)
        assert connections.has_room()
        connections.add(place)
        return place

    kept = add("kept")
    connections.work(add("in work"))
    for name in ("first", "second"):
        add(name)
    connections.wait(kept, Awaited.NEXT_REQUEST)
    for name in ("third", "fourth", "fifth"):
        add(name)
    assert dropped == ["first", "second", "kept"]


def test_the_slowest_reader_gives_way_once_too_much_is_unread() -> None:
    closed: list[Closed] = []
    connections = Connections(6, Deadlines(), closed.append)
    places = [Place(lambda: None, lambda: 100 << 20) for _ in range(3)]
    for place in places:
        connections.add(place)
        connections.wait(place, Awaited.READING)
    assert closed == [Closed.UNREAD]
    assert len(connections) == 2
    assert places[0].awaited is None


@pytest.mark.parametrize(
    ("soft", "hard", "most"),
    [(256, 20_000, "1024 4096"), (256, 4608, "1024 1024"), (1024, 1024, "128 128"), (40, 40, "16 16")],
)
def test_connections_leave_descriptors_for_the_store(soft: int, hard: int, most: str) -> None:
    """The soft limit is raised where the hard one allows it."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from stagetrace.backend.ports import connections_of_ports\nprint(*connections_of_ports())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == most.split()
