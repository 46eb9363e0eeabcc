"""Late imports may fail: a server responds as without tracing, whichever module of ours cannot be imported.

In the service, `unimportable` blocks imports once the application is loaded and its server is not. ASGI servers are in
instrumentation/test_asgi_harmless.py.
"""

from __future__ import annotations

import ast
import signal
from typing import TYPE_CHECKING, Any

import pytest

import instrumentation.grpc_client as rpc
from environments import ROOT
from heavy import HEAVY
from instrumentation.test_asgi_harmless import answers, check_log, serving, unimportable, without_imports
from instrumentation.test_grpc_harmless import outcomes
from instrumentation.test_mlserver import MODELS, rest
from servers import run_litserve, run_mlserver
from services import APPS, Service, asgi_command, run_service, wsgi_command
from sink import run_sink
from test_harmless import errors_of_the_app, part_answers
from test_harmless_wsgi import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")

EVERYTHING = "stagetrace"
PACKAGES = ROOT / "src"
WSGI = ("gunicorn", "gunicorn gthread", "gunicorn gevent", "waitress", "werkzeug", "wsgiref")


def late() -> list[str]:
    """Return the modules of ours that functions of the recording side import."""
    found: set[str] = set()
    for path in sorted(PACKAGES.rglob("*.py")):
        if path.relative_to(PACKAGES).parts[1] not in ("backend", "cli", "store", "probe.py", "_site"):
            tree = ast.parse(path.read_text())
            functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(*map(imported, functions))
    return sorted(found)


def imported(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stagetrace"):
            for name in [f"{node.module}.{one.name}" for one in node.names]:
                path = PACKAGES / name.replace(".", "/")
                yield name if path.is_dir() or path.with_suffix(".py").exists() else str(node.module)


@pytest.mark.parametrize("server", WSGI)
def test_nothing_more_can_be_imported_under_a_wsgi_server(server: str, tmp_path: Path) -> None:
    """The way in which such a server ends does not matter."""
    with run_sink() as sink:
        untraced = of_wsgi(tmp_path, server, {"UNIMPORTABLE": "none"})
        traced = of_wsgi(tmp_path, server, unimportable(sink.endpoint, EVERYTHING))
    assert traced[:-1] == untraced[:-1]
    check_log(traced[-1], untraced[-1])


def of_wsgi(folder: Path, server: str, env: dict[str, str]) -> tuple[list[Any], list[str], int, str]:
    argv = wsgi_command(server, "unimportable")
    with run_service(folder, argv=argv, env={**env, "APP": "switchable_flask"}) as service:
        return part_answers(service, REQUESTS), errors_of_the_app(service.log), service.stop(), service.log


@pytest.mark.parametrize("app", ["grpc_threads", "grpc_aio"])
def test_nor_in_a_grpc_server(app: str, tmp_path: Path) -> None:
    with run_sink() as sink:
        found = [
            of_grpc(tmp_path, app, env) for env in ({"UNIMPORTABLE": "none"}, unimportable(sink.endpoint, EVERYTHING))
        ]
    assert found[1][:-1] == found[0][:-1]
    check_log(found[1][-1], found[0][-1])


def of_grpc(folder: Path, app: str, env: dict[str, str]) -> tuple[list[Any], int, str]:
    with rpc.run_service(folder, "unimportable", {**env, "APP": app}) as service:
        return outcomes(service, app), service.stop(signal.SIGTERM), service.log


@pytest.mark.parametrize("names", [EVERYTHING, "stagetrace.guard"])
def test_nor_from_the_start_of_the_interpreter_on(names: str, tmp_path: Path) -> None:
    """No library can be patched then, and perhaps nothing can be logged."""
    argv = asgi_command("uvicorn", "ml")
    with run_service(tmp_path, argv=argv, env={"PYTHONPATH": ""}) as service:
        expected = whole(service)
    env = unimportable("http://127.0.0.1:1", names, PYTHONPATH=str(APPS / "at_start"))
    with run_service(tmp_path, argv=argv, env=env) as service:
        assert whole(service) == expected
        assert "Traceback" not in service.log


def whole(service: Service) -> list[Any]:
    return [service.call("POST", "/predict", json={})[1].json(), service.call("GET", "/plain")[1].text]


def test_no_wrapper_imports_anything_itself() -> None:
    """It would run in a call of the service: a patch imports what its wrappers need, or a guarded function does."""
    found = [
        f"{path.name}: {ast.unparse(inner)}"
        for folder in ("stagetrace/instrumentation", "stagetrace/patches", "stagetrace_contrib")
        for path in (PACKAGES / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("wraps" in ast.unparse(decorator) for decorator in node.decorator_list)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not found


@pytest.fixture(scope="module")
def untraced(folder: Path) -> tuple[list[Any], str]:
    with serving(folder, "any_starlette", "uvicorn") as (service, _):
        return answers(service, "any_starlette"), service.log


@pytest.mark.heavy
@pytest.mark.parametrize("name", late() if HEAVY else ())
def test_nor_any_single_module(name: str, untraced: tuple[list[Any], str], sink: Sink, tmp_path: Path) -> None:
    traced, log = without_imports(tmp_path, "any_starlette", "uvicorn", sink.endpoint, name)
    assert traced == untraced[0]
    assert log.count("Traceback") == untraced[1].count("Traceback"), log


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_what_is_no_part_of_a_service_is_not_needed_to_record_it(server: str, tmp_path: Path) -> None:
    """Neither these servers nor Quart bring anyio along."""
    argv = asgi_command(server, "any_quart")
    with run_sink() as sink:
        env = unimportable(sink.endpoint, "anyio", PYTHONPATH=str(APPS / "at_start"))
        with run_service(tmp_path, argv=argv, env=env, ready="/items/1") as service:
            trace, response = service.call("GET", "/items/3")
            assert response.json() == {"item": 3}
            service.stop()
            assert "in this test" not in service.log
        assert sink.request(trace).entry.attributes["http.route"] == "/items/<int:item>"


# Imported with the first request.
OF_WORKERS = ",".join(f"stagetrace.request.{name}" for name in ("worker", "remote_stages"))


def from_the_start(names: str) -> dict[str, str]:
    env = unimportable("http://127.0.0.1:1", names, PYTHONPATH=f"{APPS / 'at_start'}:{APPS}")
    return {**env, "STAGETRACE": "0" if names == "none" else "1"}


@pytest.mark.heavy
def test_nor_under_litserve(tmp_path: Path) -> None:
    def serve(names: str) -> tuple[list[int], str]:
        with run_litserve(tmp_path, "single:1+batched:1+streaming:1+async:1", from_the_start(names)) as service:
            asked = [{"factor": 0.01}, {"factor": 0.01, "raise": "http"}]
            paths = ("/single", "/batched", "/streaming", "/async")
            responses = [service.client.post(path, json=body) for path in paths for body in asked]
            return [response.status_code for response in responses], service.log

    check_workers(serve("none"), serve(OF_WORKERS))


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [0, 2])
def test_nor_under_mlserver(workers: int, tmp_path: Path) -> None:
    def serve(names: str) -> tuple[list[int], str]:
        (folder := tmp_path / names).mkdir()
        with run_mlserver(folder, MODELS, workers, from_the_start(names)) as (service, _):
            responses = [rest(service, model, [[0.01, how]])[1] for model in ("flowers", "batched") for how in (0, 1)]
            return [response.status_code for response in responses], service.log

    check_workers(serve("none"), serve(OF_WORKERS))


def check_workers(untraced: tuple[list[int], str], traced: tuple[list[int], str]) -> None:
    """Check as `check` does, for servers each of whose processes logs its faults."""
    assert traced[0] == untraced[0]
    assert "in this test" in traced[1]
    assert traced[1].count("Traceback") == untraced[1].count("Traceback"), traced[1]
