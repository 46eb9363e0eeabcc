"""A breach names the line at which its request stood, whatever thread, task or greenlet carried it, in real servers."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from services import APPS, PYTHON, Service, asgi_command, clean_environment, new_trace, run_service, wsgi_command
from sink import SERVER
from stagetrace.sources import stacks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sink import Sink

pytestmark = [
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(stacks.SOURCE.lacks is not None, reason="this interpreter shows no stacks"),
]
POLICY = "GET /health within 10s; WEBSOCKET /socket within 50ms; * within 50ms"
ANYWHERE = ("thread", "loop", "awaits", "pool", "beside", "stream", "lines")
ON_ASYNCIO = (*ANYWHERE, "gather", "group", "executor", "resumed")
ASGI = {
    "uvicorn": ON_ASYNCIO,
    "uvicorn uvloop": ON_ASYNCIO,
    "hypercorn": ON_ASYNCIO,
    "hypercorn trio": tuple(name for name in ANYWHERE if name != "stream"),  # its tasks are not followed
    "granian": ON_ASYNCIO,
    "daphne": ON_ASYNCIO,
}
WSGI = ("sleep", "computes", "pool", "stream")
OFTEN = ("uvicorn", "gunicorn gevent")  # the others run with the heavy ones


def lines(app: str, name: str) -> set[str]:
    """Return the places of an app that are right, as far as a test knows them."""
    numbered = enumerate((APPS / f"{app}.py").read_text().splitlines(), 1)
    return {f"{app}.py:{number}" for number, line in numbered if line.endswith(f"# late: {name}")}


@contextmanager
def serving(folder: Path, sink: Sink, argv: list[str], **env: str) -> Iterator[Service]:
    with run_service(folder, argv=argv, env=sink.environment(STAGETRACE_SLA=POLICY, **env)) as service:
        yield service


def wrong(service: Service, sink: Sink, app: str, names: Sequence[str]) -> list[Any]:
    """Return what the breaches say that name another line than the one at which they were late."""
    for name in names:
        service.call("GET", f"/{name}")  # whatever is imported for the first one
    asked = [(name, service.call("GET", f"/{name}")[0]) for name in names]
    found = []
    for name, trace_id in asked:
        attributes = sink.request(trace_id).entry.attributes
        code = str(attributes.get("sla.breach.code"))
        if not lines(app, name.rpartition("/")[2]) & {code.partition(" ")[0]}:
            found.append((name, code, attributes.get("sla.breach.evidence")))
    return found


def often(servers: Any) -> list[Any]:
    return [pytest.param(one, marks=() if one in OFTEN else pytest.mark.heavy) for one in servers]


@pytest.mark.parametrize("server", often(ASGI))
def test_a_request_of_an_asgi_server(server: str, folder: Path, sink: Sink) -> None:
    with serving(folder, sink, asgi_command(server, "carriers")) as service:
        assert wrong(service, sink, "carriers", (*ASGI[server], "behind/awaits")) == []


@pytest.mark.parametrize(
    "server",
    often(
        (
            "gunicorn",
            "gunicorn gthread",
            "gunicorn gevent",
            "waitress",
            "werkzeug",
            "werkzeug gevent",
            "gevent",
            "cheroot",
            "wsgiref",
        )
    ),
)
def test_a_request_of_a_wsgi_server(server: str, folder: Path, sink: Sink) -> None:
    with serving(folder, sink, wsgi_command(server, "carriers_wsgi")) as service:
        assert wrong(service, sink, "carriers_wsgi", WSGI) == []


def test_an_rpc_of_grpc(sink: Sink) -> None:
    """Of a server of threads, and of one of asyncio, whose plain functions run in a pool."""
    env = clean_environment() | sink.environment(STAGETRACE_SLA="* within 50ms")
    subprocess.run([PYTHON, "carriers_grpc.py"], cwd=APPS, env=env, check=True, timeout=120)
    methods = ("Unary", "Stream", "Awaits", "Chunks", "PooledUnary", "PooledStream")
    spans = sink.wait_for(lambda all_: len([one for one in all_ if one.name.startswith("ml.Scorer/")]) >= len(methods))
    codes = {one.name: str(one.attributes.get("sla.breach.code")) for one in spans if one.kind == SERVER}
    for method in methods:
        code = codes[f"ml.Scorer/{method}"].partition(" ")[0]
        assert code in lines("carriers_grpc", method.removeprefix("Pooled")), (method, codes)


@pytest.mark.parametrize(
    "server", [pytest.param(one, marks=pytest.mark.heavy) for one in ("aiohttp", "tornado", "sanic")]
)
def test_a_request_of_an_async_server(server: str, folder: Path, sink: Sink) -> None:
    argv = [PYTHON, f"server_{server}.py"]
    with serving(folder, sink, argv, MODEL="none") as service:
        trace_id, _ = service.call("POST", "/predict/1", json={"seconds": 0.25})
        code = str(sink.request(trace_id).entry.attributes.get("sla.breach.code"))
        assert re.fullmatch(r"server_work.py:\d+ in predict", code)


def test_a_websocket(folder: Path, sink: Sink) -> None:
    with serving(folder, sink, asgi_command("uvicorn", "carriers")) as service:
        trace_id, headers = new_trace()
        with connect(f"ws://127.0.0.1:{service.port}/socket", additional_headers=headers) as websocket:
            assert list(websocket) == []
        code = str(sink.request(trace_id).entry.attributes.get("sla.breach.code"))
        assert code.partition(" ")[0] in lines("carriers", "socket")
