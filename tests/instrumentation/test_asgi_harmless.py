"""Whatever breaks in a hook of a server or a framework, the application answers as untraced, and it is said once."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from services import PYTHON, Service, run_service

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

UVICORN = ["-m", "uvicorn", "broken:app", "--port", "{port}"]
TRIO = ["-m", "hypercorn", "-k", "trio", "broken:app", "--bind", "127.0.0.1:{port}"]
HYPERCORN = ["-m", "hypercorn", "broken:app", "--bind", "127.0.0.1:{port}"]
GRANIAN = ["-m", "granian", "--interface", "asgi", "broken:app", "--port", "{port}"]
DAPHNE = ["-m", "daphne", "-p", "{port}", "broken:app"]
ASKED = ["GET /items/3", "POST /items/3", "GET /nowhere", "GET /broken", "POST /tree", "GET /stream", "GET /background"]

TWINS: list[tuple[str, list[str], str]] = [
    ("any_starlette", HYPERCORN, "stagetrace.instrumentation.served:around"),
    ("any_starlette", GRANIAN, "stagetrace.instrumentation.asgi:AsgiRequest.serve_by"),
    ("any_starlette", DAPHNE, "stagetrace.instrumentation.asgi:OwnRequest.__init__"),
    ("any_starlette", UVICORN, "stagetrace.recording.stream:Stream.add"),
    ("any_starlette", UVICORN, "stagetrace.recording.stream:Stream.attributes"),
    ("any_starlette", UVICORN, "stagetrace.instrumentation.websocket:current_task"),
    ("any_starlette", UVICORN, "stagetrace.instrumentation.websocket:Messages.counted_messages"),
    ("any_starlette", UVICORN, "stagetrace.sla.processor:decide"),
    ("any_litestar", UVICORN, "stagetrace.instrumentation.litestar:_function_of"),
    ("any_litestar", UVICORN, "stagetrace.instrumentation.asgi:AsgiRequest.serve_by"),
    ("any_quart", UVICORN, "stagetrace.instrumentation.quart:_rule_of_another_method"),
    ("own_instrumentor", UVICORN, "stagetrace.instrumentation.otel_server:RequestSpan"),
    ("own_instrumentor", UVICORN, "stagetrace.instrumentation.asgi:AsgiRequest.leave_out"),
]


def answers(service: Service, app: str) -> list[Any]:
    found: list[Any] = []
    for asked in ["POST /predict", "GET /plain"] if app == "own_instrumentor" else ASKED:
        response = service.client.request(*asked.split(), json={} if "predict" in asked else None)
        response.headers["allow"] = ", ".join(
            sorted(response.headers.get("allow", "").split(", "))
        )  # sets have no order
        # A trace is announced where there is one.
        changing = ("date", "traceresponse", "access-control-expose-headers")
        headers = [item for item in response.headers.items() if item[0] not in changing]
        found.append((asked, response.status_code, response.content, headers))
    if app != "own_instrumentor":
        with connect(f"{service.url.replace('http', 'ws')}/talk/here") as talk:
            talk.send("hello")
            found.append(talk.recv())
    return found


@pytest.fixture(scope="module")
def untraced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of each application under each server, filled as they are asked for."""
    return {"folder": tmp_path_factory.mktemp("untraced")}


@pytest.mark.parametrize(
    ("app", "argv", "twin"), TWINS, ids=lambda value: value if isinstance(value, str) else value[1]
)
def test_a_failing_part_changes_no_answer_and_is_said_once(
    app: str, argv: list[str], twin: str, untraced: dict[str, Any], tmp_path: Path
) -> None:
    key = f"{app} {argv[1]}"
    if key not in untraced:
        with run_service(untraced["folder"], argv=[PYTHON, *argv], env={"APP": app, "PYTHONHASHSEED": "0"}) as service:
            untraced[key] = answers(service, app)
    env = {
        "APP": app,
        "BREAK": twin,
        "PYTHONHASHSEED": "0",
        "STAGETRACE": "1",
        "STAGETRACE_SLA": "* within 1ms",
        "OTEL_TRACES_EXPORTER": "none",
    }
    with run_service(tmp_path, argv=[PYTHON, *argv], env=env) as service:
        assert answers(service, app) == untraced[key]
        for _ in range(200):  # what runs in the background is said a little later
            said = [line for line in service.log.splitlines() if "the twin is broken" in line]
            if said:
                break
            time.sleep(0.05)
    assert said, service.log
    assert set(Counter(line for line in said if line.startswith("stagetrace:")).values()) == {1}, service.log


def test_a_websocket_under_trio_is_served(tmp_path: Path) -> None:
    env = {"APP": "any_starlette", "STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none"}
    with run_service(tmp_path, argv=[PYTHON, *TRIO], env=env) as service:
        with connect(f"{service.url.replace('http', 'ws')}/talk/here") as talk:
            talk.send("hello")
            assert talk.recv() == "hello"
            with pytest.raises(ConnectionClosedOK):  # by the application: where both close at once hypercorn may crash
                talk.recv()
        assert service.client.get("/items/3").is_success
        assert "fault of stagetrace" not in service.log, service.log


def test_an_application_copies_and_pickles_its_scope_and_returns_to_its_server(tmp_path: Path) -> None:
    argv = [PYTHON, "-m", "uvicorn", "copying:app", "--port", "{port}"]
    with run_service(tmp_path, argv=argv, env={"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none"}) as service:
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
        ("sys.modules['stagetrace.instrumentation.served'] = None", 1),
        ("del sys.modules['stagetrace.sources.threads']; builtins.open = refuse", 0),
    ],
    ids=["cannot be loaded", "reads no files"],
)
def test_starlette_answers_where_what_records_is_loaded_by_a_request(broken: str, said: int) -> None:
    env = {**os.environ, "STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none", "STAGETRACE_STATUS": "0"}
    argv = [PYTHON, "-c", UNCOVERED.replace("BROKEN", broken)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "[None, b'hello', None, b'hello']\n", done.stderr
    assert done.stderr.count("fault of stagetrace") == said, done.stderr
