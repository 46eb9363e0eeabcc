"""Faults injected into patches of servers and frameworks: the application responds as untraced; each is logged once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from backends import free_port
from parts import parts
from services import Service, asgi_command, run_python, run_service
from sink import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACED = {"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none"}
ASKED = ["GET /items/3", "POST /items/3", "GET /nowhere", "GET /broken", "POST /tree", "GET /stream", "GET /background"]

# By application and server, the parts of stagetrace that fail there.
PARTS = {
    ("any_starlette", "hypercorn"): "protocols.asgi: around",
    ("any_starlette", "granian"): "protocols.http_request: HttpRequest.set_route",
    ("any_starlette", "daphne"): "protocols.asgi_request: AsgiRequest.__init__",
    ("any_starlette", "uvicorn"): """
        request.chunk_times: Stream.add Stream.attributes
        protocols.asgi_channels: current_task Messages.counts
        sla.decision: decide
    """,
    ("any_litestar", "uvicorn"): """
        stagetrace_contrib.litestar: _function_of
        protocols.http_request: HttpRequest.set_route
    """,
    ("any_quart", "hypercorn"): "stagetrace_contrib.quart: _rule_of_another_method",
    ("any_falcon", "uvicorn"): "protocols.wsgi_request: note_route",
    ("any_blacksheep", "uvicorn"): "protocols.http_request: HttpRequest.set_route",
    ("asgi_beside", "uvicorn"): """
        patches.opentelemetry: RequestSpan
        protocols.asgi_request: AsgiRequest.exclude
    """,
}


@contextmanager
def killed(service: Service) -> Iterator[None]:
    """Kill a service at the end: after these requests daphne does not end at SIGTERM, untraced either."""
    try:
        yield
    finally:
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait()


@contextmanager
def serving(folder: Path, app: str, server: str, **env: str) -> Iterator[tuple[Service, str]]:
    """Run an application; give it, and the URL by which parts of stagetrace are broken and mended in it."""
    control = free_port()
    env = {"APP": app, "KIND": "instrumentor", "CONTROL": str(control), "PYTHONHASHSEED": "0", **env}
    with run_service(folder, argv=asgi_command(server, "controlled"), env=env) as service, killed(service):
        yield service, f"http://127.0.0.1:{control}"


def answers(service: Service, app: str) -> list[Any]:
    found: list[Any] = []
    for asked in ["POST /predict", "GET /plain"] if app == "asgi_beside" else ASKED:
        response = service.client.request(*asked.split(), json={} if "predict" in asked else None)
        allowed = response.headers.get("allow", "").split(", ")
        response.headers["allow"] = ", ".join(sorted(allowed))  # sets have no order
        # A trace is announced where there is one.
        changing = ("date", "traceresponse", "access-control-expose-headers")
        headers = [item for item in response.headers.items() if item[0] not in changing]
        found.append((asked, response.status_code, response.content, headers))
    if app not in ("asgi_beside", "any_django"):
        found.append(talk(service))
    return found


def talk(service: Service) -> Any:
    """Return what a websocket sends back, once the application has closed it.

    Where both sides close at once, hypercorn may crash, and daphne does not end at SIGTERM.
    """
    with connect(f"{service.url.replace('http', 'ws')}/talk/here") as websocket:
        websocket.send("hello")
        answer = websocket.recv()
        with pytest.raises(ConnectionClosedOK):
            websocket.recv()
    return answer


# Where no module of ours can be imported any more.
UNIMPORTABLE = [
    *(("any_starlette", server) for server in ("uvicorn", "hypercorn", "granian", "daphne", "gunicorn")),
    *(("any_litestar", "uvicorn"), ("any_quart", "hypercorn"), ("any_django", "uvicorn")),
]


class Untraced(NamedTuple):
    """An application under a server, what it responds without tracing, and its log."""

    app: str
    server: str
    answers: list[Any]
    log: str


@pytest.fixture(scope="module")
def untraced(request: pytest.FixtureRequest, folder: Path) -> Untraced:
    app, server = request.param
    with serving(folder, app, server) as (service, _):
        return Untraced(app, server, answers(service, app), service.log)


@pytest.mark.parametrize(
    "untraced",
    [pytest.param(one, marks=() if one[1] == "uvicorn" else pytest.mark.smoke, id=" ".join(one)) for one in PARTS],
    indirect=True,
)
def test_an_injected_fault_changes_no_response_and_is_logged_once(untraced: Untraced, tmp_path: Path) -> None:
    app, server, expected, _ = untraced
    broken = parts(PARTS[app, server])
    # The first one fails from the start on: some are called by the server or the framework as it starts.
    with serving(tmp_path, app, server, BREAK=broken[0], STAGETRACE_SLA="* within 1ms", **TRACED) as (service, control):
        for number, part in enumerate(broken):
            before = len(service.log) if number else 0
            if number:
                httpx.get(f"{control}/break/{part}").raise_for_status()
            assert answers(service, app) == expected, part
            reported = failures(service, before)
            httpx.get(f"{control}/mend").raise_for_status()
            times = Counter(line for line in reported if line.startswith("stagetrace:")).values()
            assert set(times) == {1}, service.log


@pytest.mark.parametrize(
    "untraced",
    [
        pytest.param(one, marks=pytest.mark.smoke if one[1] == "granian" else (), id=" ".join(one))
        for one in UNIMPORTABLE
    ],
    indirect=True,
)
def test_nothing_more_can_be_imported_under_an_asgi_server(untraced: Untraced, sink: Sink, tmp_path: Path) -> None:
    traced, log = without_imports(tmp_path, untraced.app, untraced.server, sink.endpoint, "stagetrace")
    assert traced == untraced.answers
    check_log(log, untraced.log)


def without_imports(folder: Path, app: str, server: str, endpoint: str, names: str) -> tuple[list[Any], str]:
    """Return the responses of an application that cannot import modules of these names any more, and the log."""
    env = unimportable(endpoint, names, APP=app)
    with run_service(folder, argv=asgi_command(server, "unimportable"), env=env) as service, killed(service):
        return answers(service, app), service.log


def unimportable(endpoint: str, names: str, **more: str) -> dict[str, str]:
    """Return the variables of a service that is recorded, and cannot import modules of these names any more."""
    sources = {"STAGETRACE_SOCKET_WAIT": "1", "STAGETRACE_WIRE": "1"}
    more |= {"STAGETRACE_SLA": "* within 1ms", "UNIMPORTABLE": names, "PYTHONHASHSEED": "0"}
    return Sink(endpoint).environment(**sources, **more)


def check_log(log: str, untraced: str) -> None:
    """Check that each fault was logged once, by stagetrace, and that errors are the application's own."""
    ours = [line for line in log.splitlines() if line.startswith("stagetrace: ")]
    assert any("in this test" in line for line in ours), log
    assert len(ours) == len(set(ours)), log
    assert log.count("Traceback") == untraced.count("Traceback"), log


def failures(service: Service, since: int) -> list[str]:
    """Return the lines of the log that report the failure: what runs in the background is reported a little later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [line for line in service.log[since:].splitlines() if "injected fault" in line]
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(service.log)


@pytest.mark.usefixtures("services")
def test_a_websocket_under_trio_is_served(tmp_path: Path) -> None:
    with serving(tmp_path, "any_starlette", "hypercorn trio", **TRACED) as (service, _):
        assert talk(service) == "hello"
        assert service.client.get("/items/3").is_success
        assert "fault of stagetrace" not in service.log, service.log


@pytest.mark.usefixtures("services")
def test_an_application_copies_and_pickles_its_scope_and_returns_to_its_server(tmp_path: Path) -> None:
    with run_service(tmp_path, argv=asgi_command("uvicorn", "copying"), env=TRACED) as service:
        assert service.client.get("/there").text == "/there /there", service.log
        assert "ASGI callable should return None, but returned '123'" in service.log


UNCOVERED = """
import asyncio, builtins, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

def refuse(*_):
    raise RuntimeError("no files in an event loop, as blockbuster has it")

async def main():
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    sent = []

    async def send(message):
        sent.append(message.get("body"))

    BROKEN
    for _ in range(2):
        await app(dict(scope), None, send)
    print(sent)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("sys.modules['stagetrace.protocols.asgi'] = None", 1),
        ("del sys.modules['stagetrace.sources.thread_cpu']; builtins.open = refuse", 0),
    ],
    ids=["cannot be loaded", "reads no files"],
)
def test_starlette_answers_where_what_records_is_loaded_by_a_request(broken: str, said: int) -> None:
    done = run_python("-c", UNCOVERED.replace("BROKEN", broken), STAGETRACE_STATUS="0", **TRACED)
    assert done.stdout == "[None, b'hello', None, b'hello']\n", done.stderr
    assert done.stderr.count("fault of stagetrace") == said, done.stderr


@pytest.mark.usefixtures("services")
def test_an_answer_has_its_headers_however_long_it_takes_to_prepare_the_recording(tmp_path: Path) -> None:
    """The server adds some from its first tick on, which comes before any request where nothing waits in between."""
    with run_service(tmp_path, argv=asgi_command("uvicorn", "slowly_prepared"), env=TRACED, ready="/") as service:
        assert service.first is not None
        assert {"date", "server"} <= {*service.first.headers}
