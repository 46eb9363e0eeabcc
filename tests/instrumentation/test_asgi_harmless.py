"""Whatever breaks in a hook of a server or a framework, the application answers as untraced, and it is said once."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from services import PYTHON, Service, run_service

if TYPE_CHECKING:
    from pathlib import Path

UVICORN = ["-m", "uvicorn", "broken:app", "--port", "{port}"]
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
