"""Beside a package that is too old, or without a required one, services run untraced, and log it once."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import tomllib  # type: ignore[import-not-found]  # there from 3.11 on, which the tests need

from doctor import DOCTOR, settings
from environments import ROOT, folder_with
from services import asgi_command, run_python, run_service
from sink import run_sink
from stagetrace.system import packages as versions
from test_harmless import answers

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from services import Service

OLDER = {
    # what a person asked pip for -> the line about it
    "opentelemetry-instrumentation-fastapi==0.51b0": "opentelemetry-api 1.30.0 (needed: 1.45), "
    "opentelemetry-instrumentation 0.51b0 (needed: 0.66b0), "
    "opentelemetry-instrumentation-fastapi 0.51b0 (needed: 0.66b0), "
    "opentelemetry-semantic-conventions 0.51b0 (needed: 0.66b0), "
    "opentelemetry-util-http 0.51b0 (needed: 0.66b0)",
    "opentelemetry-sdk==1.30": "opentelemetry-api 1.30.0 (needed: 1.45), opentelemetry-sdk 1.30.0 (needed: 1.45), "
    "opentelemetry-semantic-conventions 0.51b0 (needed: 0.66b0)",
    "opentelemetry-sdk==1.38": "opentelemetry-api 1.38.0 (needed: 1.45), opentelemetry-sdk 1.38.0 (needed: 1.45), "
    "opentelemetry-semantic-conventions 0.59b0 (needed: 0.66b0)",
}
FASTAPI, *SDKS = OLDER
LOGS = {"uvicorn": 1, "hypercorn": 2, "granian": 1}  # processes that log it: hypercorn's first one too


def problem(packages: str) -> str:
    return f"nothing is recorded, since these packages are too old or missing: {packages}"


def served(folder: Path, server: str, **env: str) -> AbstractContextManager[Service]:
    return run_service(folder, argv=asgi_command(server, "ml"), env=env)


@pytest.fixture(scope="module")
def untraced(request: pytest.FixtureRequest, folder: Path) -> tuple[str, list[Any]]:
    """Return the name of a server, and what it responds untraced."""
    with served(folder, request.param, PYTHONPATH=str(folder_with(FASTAPI))) as service:
        return request.param, answers(service)


@pytest.mark.parametrize(
    ("older", "untraced"),
    [
        *((FASTAPI, server) for server in ("uvicorn", "hypercorn", "granian")),
        *((sdk, "uvicorn") for sdk in SDKS),
    ],
    indirect=["untraced"],
)
def test_beside_an_older_opentelemetry_a_server_answers_as_untraced(
    older: str, untraced: tuple[str, list[Any]], tmp_path: Path
) -> None:
    """The older one is found first, as on a PYTHONPATH."""
    server, expected = untraced
    with run_sink() as sink:
        env = sink.environment(PYTHONPATH=str(folder_with(older)), STAGETRACE_SLA="* within 1us")
        with served(tmp_path, server, **env) as service:
            assert answers(service) == expected
            service.stop()
            lines = [line for line in service.log.splitlines() if "stagetrace" in line]
        assert not sink.traces()
    assert lines == [f"stagetrace: {problem(OLDER[older])}."] * LOGS[server]


@pytest.mark.usefixtures("services")
def test_doctor_reports_the_same(tmp_path: Path) -> None:
    env = settings(tmp_path, STAGETRACE="1", PYTHONPATH=str(folder_with(FASTAPI)))
    done = run_python(*DOCTOR[1:], "--json", **env)
    checks: dict[str, Any] = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert checks["packages"]["state"] == "fail"
    assert checks["packages"]["found"].startswith(f"{problem(OLDER[FASTAPI])}; here: ")
    assert checks["packages"]["mend"].startswith("pip install 'opentelemetry-api>=1.45' ")
    assert checks["switch"]["found"] == "STAGETRACE=1, but no service started from here can be recorded"
    assert "libraries" not in checks


def test_a_process_that_is_not_recorded_is_left_as_it_is(tmp_path: Path) -> None:
    """Nothing is patched, and nothing is logged about the package."""
    code = """
import concurrent.futures.thread as pool, fastapi, stagetrace, sys
print(*(hasattr(method, "__wrapped__") for method in (pool.ThreadPoolExecutor.submit, fastapi.FastAPI.__call__)))
with stagetrace.resume({"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}), stagetrace.stage("work"), stagetrace.batch([]):
    print("stagetrace.runtime.runtime" in sys.modules, *stagetrace.carry())
"""
    done = run_python("-c", code, **settings(tmp_path, STAGETRACE="1", PYTHONPATH=str(folder_with(FASTAPI))))
    assert done.stdout.split() == ["False", "False", "False", "traceparent"], done.stderr
    first, second = done.stderr.splitlines()
    assert first == f"stagetrace: {problem(OLDER[FASTAPI])}."
    assert second.startswith("All runs as if untraced. To record: pip install 'opentelemetry-api>=1.45' 'opentele")
    assert second.endswith(" 'opentelemetry-util-http>=0.66b0'")


def test_what_is_needed_is_what_the_project_declares() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(f"{name}>={least}" for name, (least, _) in versions.LEAST.items()) == sorted(declared)


def put(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).mkdir()
    return str(folder)


def test_versions_are_those_that_python_would_import() -> None:
    assert versions.installed() == {name: version(name) for name in versions.LEAST}


def test_the_first_on_the_path_counts_and_not_what_an_upgrade_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    names = ("_api-1.30.0", "_api-1.46.0", "_api-1.9", "-1.2")
    here = put(first, *(f"opentelemetry{name}.dist-info" for name in names))
    folders = [str(tmp_path / "no-folder"), here, put(second, "opentelemetry_api-2.0.dist-info")]
    monkeypatch.setattr(sys, "path", folders)
    assert versions.installed()["opentelemetry-api"] == "1.46.0"


def test_an_unknown_version_is_not_held_against_a_package(tmp_path: Path) -> None:
    """Some images have no metadata; and before `site` has built the path, packages may still appear."""
    put(tmp_path / "opentelemetry" / "sdk")
    code = f"""
import sys, builtins
sys.path += [{str(ROOT / "src")!r}, {str(tmp_path)!r}]
from stagetrace.system import packages as versions
print(len(versions.unfit(versions.installed())), versions.fit())
builtins.quit = None
print(*(name for name, _, _ in versions.unfit(versions.installed())), versions.fit())
"""
    early, started = run_python("-S", "-c", code).stdout.splitlines()
    assert early == "0 True"
    assert started.split() == [*(name for name in versions.ALWAYS_USED if name != "opentelemetry-sdk"), "False"]


@pytest.mark.parametrize("package", versions.LEAST)
def test_a_missing_package_is_reported_where_it_is_always_used(package: str) -> None:
    """Some services have no gRPC, and send their spans over HTTP."""
    here: dict[str, str | None] = {name: least for name, (least, _) in versions.LEAST.items()}
    assert versions.unfit({**here, package: "99.0.dev0"}) == versions.unfit({**here, package: ""}) == []
    found = versions.unfit({**here, package: None})
    least = versions.LEAST[package][0]
    assert found == ([(package, None, least)] if package in versions.ALWAYS_USED else [])
    assert versions.unfit({**here, package: "0.1"}) == [(package, "0.1", least)]
