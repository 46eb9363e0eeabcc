"""`stagetrace page`: the page over each kind of store, what it prints, what it does not start with, how it ends."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backend.processes import Lines, started, until
from backend.running import environment, run_up
from cli.running import cli, refused
from page.data import DATA, fill
from page.serving import AS_PART, COMMAND, Served, run_page
from stagetrace.backend.options import Listening
from stagetrace.cli import page as verb
from stagetrace.cli.registry import VERBS
from stagetrace.page.queries import Readers
from stagetrace.page.views import VIEWS
from stagetrace.store import open_store
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("services")

PARTS = [f"{view.path}/{name}" for view in VIEWS if view.in_menu for name in view.parts]
CLI = Path(__file__).parent.parent.parent / "docs" / "cli.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store `data` of what the demo recorded."""
    made = tmp_path_factory.mktemp("page")
    fill(made / "data", "demo")
    return made


@pytest.fixture(scope="module")
def old_file(folder: Path) -> str:
    """Return the URL of a file of spans that are years old."""
    (message,) = DATA["demo"]()
    path = folder / "old.pb"
    for spans in message.resource_spans:
        for scope in spans.scope_spans:
            for span in scope.spans:
                span.start_time_unix_nano -= 10**17
                span.end_time_unix_nano -= 10**17
    path.write_bytes(message.SerializeToString())
    return path.as_uri()


@pytest.fixture(scope="module")
def over_each(folder: Path, old_file: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Run a page over each kind of store with the same spans."""
    made = [tmp_path_factory.mktemp(kind) for kind in ("up", "local", "jaeger", "file")]
    shutil.copytree(folder / "data", made[0] / "data")
    with (
        run_up(made[0]) as up,
        run_page(made[1], str(folder / "data")) as local,
        run_page(made[2], f"jaeger://{up.target('query_grpc_port')}") as jaeger,
        run_page(made[3], old_file) as file,
    ):
        yield {"local": local, "jaeger": jaeger, "file": file}


@pytest.mark.parametrize("kind", ["local", "jaeger", "file"])
def test_every_part_responds_over_every_store(over_each: dict[str, Served], kind: str) -> None:
    page = over_each[kind]
    for path in PARTS:
        response = page.get(path, headers=AS_PART)
        assert response.status_code == 200, (path, response.text)
    assert "ticket-router" in page.get("/board/names", headers=AS_PART).text


def test_of_a_file_everything_is_shown_and_of_a_store_the_last_hour(over_each: dict[str, Served]) -> None:
    since = {
        kind: re.search(r'name="since"[^>]* value="([^"]+)"', page.get("/").text) for kind, page in over_each.items()
    }
    shown = {kind: found[1] for kind, found in since.items() if found}
    assert shown == {"local": "1h", "jaeger": "1h", "file": "1970-01-01"}


def test_the_ready_line_names_everything(over_each: dict[str, Served]) -> None:
    page = over_each["local"]
    ready = dict(page.ready)
    assert ready.pop("pid") == page.process.pid
    assert ready.pop("url") == f"http://127.0.0.1:{ready.pop('port')}/"
    assert ready.pop("store").endswith("/data")
    assert ready == {"ready": True, "host": "127.0.0.1", "tls": False, "token": False}
    table = CLI.read_text().partition("## `page --json`")[2].partition("\n## ")[0]
    described = {
        word for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)
    }
    assert described == set(verb.ready("x", Listening(), 1))


def test_people_see_where_it_is(folder: Path) -> None:
    with started([*COMMAND, "--store", str(folder / "data")], env=environment(), stderr=None) as process:
        lines = Lines(process.stdout)
        assert lines.next() == f"stagetrace shows {folder / 'data'}"
        assert re.fullmatch(r"  http://127\.0\.0\.1:\d+/", lines.next())
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_also_with_open_connections(folder: Path, tmp_path: Path, number: int) -> None:
    with run_page(tmp_path, str(folder / "data")) as page:
        idle = [socket.create_connection(("127.0.0.1", page.ready["port"]), timeout=60) for _ in range(3)]
        idle[0].sendall(b"GET / HTTP/1.1\r\n")
        idle[1].sendall(b"GET /tail/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert idle[1].recv(12) == b"HTTP/1.1 200"
        assert page.stop(number) == 0
        for one in idle:
            one.close()
    assert page.log.read_text() == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--store", "/no/such/folder"], "no such file or folder"),
        (["--store", "nowhere://x"], "there is no kind of store called 'nowhere'"),
        (["--store", ""], "--store is empty"),
        ([], "no store to read from"),
        (["--store", ".", "--port", "x"], "'x' is not a port (0 to 65535)"),
        (["--store", ".", "--port", "65536"], "'65536' is not a port"),
        (["--store", ".", "--host", "0.0.0.0"], "there is no token"),  # noqa: S104
        (["--store", ".", "--host", "::", "--token", "s"], "without TLS the network can read token and spans"),
        (["--store", ".", "--token", ""], "the token is empty"),
        (["--store", ".", "--token", "s", "--token-file", "f"], "both a token and a file"),
        (["--store", ".", "--tls-cert", "c.pem"], "TLS needs both"),
        (["--store", ".", "--tls-cert", "c.pem", "--tls-key", "k.pem"], "cannot use c.pem with k.pem"),
        (["--store", ".", "--allow-host", "a/b"], "--allow-host: 'a/b' is not a host name"),
        (["--store", ".", "--jaeger-ui", "javascript:x"], "--jaeger-ui: 'javascript:x' is no address of a web page"),
        (["--store", ".", "--jaeger-ui", "jaeger:16686"], "'jaeger:16686' is no address of a web page"),
        (["--store", ".", "--grpc-port", "1"], "unrecognized arguments"),
    ],
)
def test_what_it_does_not_start_with(
    flags: list[str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "data")
    assert words in refused("page", *flags)


def test_a_port_that_is_taken_is_named(over_each: dict[str, Served], folder: Path) -> None:
    port = over_each["local"].ready["port"]
    said = refused("page", "--store", folder / "data", "--port", port)
    assert f"port {port}: another process listens there" in said
    assert "give --port PORT" in said


def test_its_default_port_is_nobody_elses() -> None:
    """16685 to 16687 are Jaeger's."""
    assert "default: 16688" in cli("page", "--help").stdout.replace("\n", " ")
    assert "page" in VERBS


def test_a_store_that_fails_is_named_in_its_part(folder: Path, tmp_path: Path) -> None:
    """No Jaeger is there; then one is, and what failed was not kept."""
    shutil.copytree(folder / "data", tmp_path / "data")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with run_page(tmp_path, f"jaeger://127.0.0.1:{port}") as page:
        assert page.get("/").status_code == 200
        for path in [one for one in PARTS if one != "/board/alerts"][:3]:  # which asks no store
            failed = page.get(path, headers=AS_PART)
            assert failed.status_code == 503
            assert f"127.0.0.1:{port}" in failed.text
            assert 'role="alert"' in failed.text
        with run_up(tmp_path, f"--query-grpc-port={port}"):
            until(lambda: page.get(PARTS[0], headers=AS_PART).status_code == 200)
    assert page.log.read_text() == ""


@pytest.mark.parametrize("kind", ["local", "file"])
def test_a_question_in_work_is_interrupted(folder: Path, old_file: str, kind: str) -> None:
    """In the database that its thread made; one that another thread made goes on."""
    url = {"local": str(folder / "data"), "file": old_file}[kind]
    readers = Readers(lambda: open_store(url))
    begun, failed = threading.Event(), threading.Event()

    def ask() -> None:
        with readers.one() as reader, reader.relations(Selection(0, time.time_ns())) as relations:
            begun.set()
            list(relations.select("SELECT count(*) FROM range(1000000000000) WHERE hash(range) = 0")[1])

    def work() -> None:
        try:
            ask()
        except Exception:  # noqa: BLE001 -- DuckDB's
            failed.set()

    asking = threading.Thread(target=work, daemon=True)
    asking.start()
    assert begun.wait(60)
    with open_store(url) as other, other.relations(Selection(0, time.time_ns())) as relations:

        def is_over() -> bool:
            readers.interrupt()
            assert list(relations.select("SELECT 1")[1]) == [(1,)]
            return failed.is_set()

        until(is_over)
    readers.close()
