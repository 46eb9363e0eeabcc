"""A service without a name gets that of its application, under each launcher, in each process; spans name the host."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from services import run_python, run_service, wsgi_command
from stagetrace import guard
from stagetrace.tracing import resource as provider
from stagetrace.tracing.resource import guessed

if TYPE_CHECKING:
    from pathlib import Path

    from sink import Sink

BIN = "/venv/bin/"


@pytest.mark.usefixtures("services")
def test_a_name_among_the_resources_attributes_wins(sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=x,service.name=shop")
    with run_service(tmp_path, argv=wsgi_command("gunicorn", "flask_light"), env=env) as service:
        assert sink.request(service.call("GET", "/health")[0]).entry.service == "shop"


def test_a_provider_of_the_services_own_keeps_its_resource() -> None:
    code = (
        "import sys; sys.argv = ['serve.py']\n"
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "from stagetrace.runtime.runtime import runtime; runtime.prepare_now()\n"
        "print(trace.get_tracer_provider().resource.attributes['service.name'])"
    )
    done = run_python("-c", code, STAGETRACE="1", OTEL_TRACES_EXPORTER="none", STAGETRACE_STATUS="0")
    assert done.stdout.startswith("unknown_service")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([f"{BIN}uvicorn", "app.main:app", "--host", "localhost:80"], "app.main"),
        ([f"{BIN}uvicorn", "--port", "8000", "--factory", "app.main:create"], "app.main"),
        (
            [f"{BIN}gunicorn", "-b", "0.0.0.0:80", "-k", "uvicorn.workers.UvicornWorker", "app.main:create(x=1)"],
            "app.main",
        ),
        ([f"{BIN}hypercorn", "--bind=localhost:8000", "app.main:app"], "app.main"),
        (["/venv/lib/site-packages/uvicorn/__main__.py", "app.main:app"], "app.main"),
        ([f"{BIN}waitress-serve", "--listen=*:80", "--call", "app.main:create"], "app.main"),
        ([f"{BIN}uvicorn", "unimported:app"], "shop"),
        ([f"{BIN}gunicorn", "-c", "gunicorn.conf.py"], "shop"),
        ([f"{BIN}fastapi", "run"], "shop"),
        ([f"{BIN}fastapi", "run", "app/main.py", "--port", "80"], "app.main"),
        ([f"{BIN}flask", "--app", "hello", "run"], "hello"),
        ([f"{BIN}flask", "--app=./hello.py:create", "run"], "hello"),
        ([f"{BIN}celery", "-A", "proj", "worker"], "proj"),
        (["serve.py"], "serve"),
        (["/srv/serve.py", "--model", "a:b"], "serve"),
        (["/srv/scorer/__main__.py"], "scorer"),
        ([f"{BIN}my-scorer", "--port", "80"], "my-scorer"),
        (["C/my-scorer.exe"], "my-scorer"),
        (["-c"], None),
        ([""], None),
        ([], None),
    ],
)
def test_what_a_command_line_serves(
    argv: list[str], name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setitem(sys.modules, "app.main", sys)
    for variable in ("FLASK_APP", "DJANGO_SETTINGS_MODULE"):
        monkeypatch.delenv(variable, raising=False)
    assert guessed(argv) == name


def test_a_module_of_a_package_has_its_whole_name(tmp_path: Path) -> None:
    """`python -m shop.scoring.serve` and `python -m shop.scoring`, in their processes too."""
    for folder in ("shop/scoring", "shop"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "__init__.py").touch()
    assert guessed([str(tmp_path / "shop/scoring/serve.py")]) == "shop.scoring.serve"
    assert guessed([str(tmp_path / "shop/scoring/__main__.py")]) == "shop.scoring"


def test_a_project_of_django_is_called_as_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
    assert guessed(["manage.py", "runserver", "8000"]) == "mysite"


def test_a_folder_that_is_gone_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    guard.failures.clear()
    assert guessed(["serve.py"]) is None
    assert guessed([f"{BIN}uvicorn", "unimported:app"]) is None
    assert not guard.failures


@pytest.mark.smoke
@pytest.mark.parametrize(("given", "host"), [("", socket.gethostname()), ("host.name=web-7", "web-7")])
def test_spans_name_their_host_unless_the_environment_does(
    given: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", given)
    monkeypatch.setattr(provider, "_of_process", None)
    assert provider.resource().attributes["host.name"] == host


def test_what_fails_leaves_a_service_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_program", lambda _path: 1 // 0)
    monkeypatch.setattr(provider, "_of_process", None)
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert str(provider.resource().attributes["service.name"]).startswith("unknown_service")
    assert guard.failures.pop("stagetrace.tracing.resource.guessed") == 1


def test_a_launcher_at_the_root_of_a_container_keeps_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert guessed([f"{BIN}uvicorn", "unimported:app"]) == "uvicorn"
