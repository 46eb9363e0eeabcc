"""The agent as the OpenTelemetry Operator injects it: its folder and variables, in bare environments of every Python.

No pod is started: the folder is copied, the variables are set as the operator sets them, and services are started in
environments that know nothing of stagetrace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import services
from environments import ROOT, once, uv
from matrix.environment import wheel
from matrix.pythons import interpreter
from matrix.run import APPS, HttpSink
from missing import missing
from sink import Sink, assert_tiled, run_sink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.usefixtures("services")

PYTHONS: Final = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.13t")
SITE: Final = "opentelemetry/instrumentation/auto_instrumentation"
UVICORN: Final = ("-m", "uvicorn", "asgi:app", "--app-dir", str(APPS), "--port", "{port}")
GUNICORN: Final = ("-m", "gunicorn", "with_flask:app", "--chdir", str(APPS), "-b", "127.0.0.1:{port}")
SMOKE: Final = "3.10"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the init container has copied into the pod."""
    built = wheel("3.11")
    sources = [(ROOT / "deploy/agent" / name).read_text() for name in ("build.py", "sitecustomize.py")]

    def make(folder: Path) -> None:
        argv = [sys.executable, str(ROOT / "deploy/agent/build.py"), str(folder / "made"), str(built), str(built)]
        subprocess.run(argv, check=True, capture_output=True)

    made = once("agent", [str(built), *sources], make)
    folder = tmp_path_factory.mktemp("pod") / "agent"
    shutil.copytree(made / "made" / "autoinstrumentation", folder, copy_function=shutil.copyfile)
    return folder


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Sink, HttpSink]]:
    with run_sink() as sink:
        by_http = HttpSink(sink)
        yield sink, by_http
        by_http.stop()


def bare(version: str, *requirements: str) -> str:
    """Return the interpreter of an environment of a Python with these packages alone."""
    python = interpreter(version)

    def make(folder: Path) -> None:
        uv("venv", "--allow-existing", "--python", python, str(folder))
        if requirements:
            uv("pip", "install", "--python", str(folder), *requirements)

    return str(once("injected", [python, *requirements], make) / "bin" / "python")


def variables(agent: Path, endpoint: str = "http://127.0.0.1:9", own: str = "", **more: str) -> dict[str, str]:
    """Return what the operator adds to a container whose image has `own` as its PYTHONPATH."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(agent / SITE), own, str(agent)))),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_SERVICE_NAME": "api",
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=api-1,k8s.namespace.name=shop",
        "STAGETRACE_SLA": "* within 100ms",
        "STAGETRACE_STATUS": "0",
        "MATRIX_OTEL": "none",
        **more,
    }


def answers(folder: Path, argv: Sequence[str], env: dict[str, str]) -> tuple[dict[str, Any], dict[str, str], str]:
    """Return what a service answers, under which traces, and its log."""
    found: dict[str, Any] = {}
    traces: dict[str, str] = {}
    with services.run_service(folder, argv=list(argv), env=env) as service:
        for path in ("/health", "/late", "/fail"):
            traces[path], response = service.call("GET", path)
            headers = [pair for pair in response.headers.multi_items() if pair[0] != "date"]
            found[path] = response.status_code, headers, response.content
        found["code"] = service.stop()
    return found, traces, service.log


def check(
    folder: Path, agent: Path, argv: Sequence[str], receiver: tuple[Sink, HttpSink], **given: str
) -> tuple[str, dict[str, Any]]:
    """Check that a service answers as without the agent, and that a late request is explained; return its log."""
    sink, by_http = receiver
    own = given.pop("own", "")
    env = variables(agent, by_http.endpoint, own, **given)
    untraced = {**env, "PYTHONPATH": own} if own else {key: env[key] for key in env if key != "PYTHONPATH"}
    expected, _, _ = answers(folder, argv, untraced)
    found, traces, log = answers(folder, argv, env)
    assert found == expected
    late = sink.request(traces["/late"])
    assert_tiled(late)
    attributes = late.entry.attributes
    assert (attributes["sla.breached"], attributes["sla.breach.stage"]) == (True, "handler")
    assert attributes["sla.breach.cause"] == "io_wait"
    if not is_free_threaded(argv[0]):  # where no stacks are sampled
        assert str(attributes["sla.breach.code"]).endswith(" in late")
    assert "fault of stagetrace" not in log
    return log, attributes


def is_free_threaded(python: str) -> bool:
    code = "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "1"


@pytest.mark.parametrize(
    "version",
    [pytest.param(one, marks=pytest.mark.smoke if one == SMOKE else pytest.mark.thorough) for one in PYTHONS],
)
def test_a_service_of_any_python_is_recorded_and_answers_as_without_it(
    version: str, agent: Path, receiver: tuple[Sink, HttpSink], tmp_path: Path
) -> None:
    check(tmp_path, agent, (bare(version, "uvicorn"), *UVICORN), receiver)


@pytest.mark.thorough
def test_each_worker_of_a_server_is_recorded(agent: Path, receiver: tuple[Sink, HttpSink], tmp_path: Path) -> None:
    """Processes that uvicorn starts anew, which have to find the agent by PYTHONPATH (contrib#385)."""
    log, _ = check(tmp_path, agent, (bare("3.12", "uvicorn"), *UVICORN, "--workers", "2"), receiver)
    assert log.count("recording in process") == 2


@pytest.mark.thorough
def test_forked_workers_of_a_preloaded_application_are_recorded(
    agent: Path, receiver: tuple[Sink, HttpSink], tmp_path: Path
) -> None:
    """By gunicorn, whose master has imported the application (contrib#2086, contrib#171)."""
    argv = (bare("3.11", "flask", "gunicorn"), *GUNICORN, "--preload", "--workers", "2")
    log, _ = check(tmp_path, agent, argv, receiver)
    assert "recording in process" in log


OWN_OTEL: Final = """
import opentelemetry.instrumentation.auto_instrumentation as agents, opentelemetry.sdk.version as sdk
print(sdk.__version__, agents.__file__)
"""
CLASHES: Final = {
    # issue: Python, what the service has installed, and what it has to find
    "otel-python#4226, #4189": ("3.10", ("protobuf==3.20.3",), "import google.protobuf as p; print(p.__version__)"),
    "protobuf 4": ("3.11", ("protobuf==4.25.8",), "import google.protobuf as p; print(p.__version__)"),
    "operator#1885": ("3.11", ("urllib3==1.26.20", "requests==2.28.2"), "import urllib3 as p; print(p.__version__)"),
    "contrib#1884": ("3.12", ("google-auth==2.43.0",), "import google.auth as p; print(p.__file__)"),
    "an OpenTelemetry of its own": (
        "3.11",
        ("opentelemetry-sdk==1.20.0", "opentelemetry-instrumentation==0.41b0", "setuptools==75.8.0"),
        OWN_OTEL,
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("issue", CLASHES)
def test_what_a_service_has_installed_is_what_it_finds(
    issue: str, agent: Path, receiver: tuple[Sink, HttpSink], tmp_path: Path
) -> None:
    version, requirements, code = CLASHES[issue]
    python = bare(version, "uvicorn", *requirements)
    command = [python, "-c", code]
    plain = subprocess.run(command, env=services.clean_environment(), capture_output=True, text=True, check=True)
    env = {**services.clean_environment(), **variables(agent)}
    injected = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert (injected.stdout, injected.stderr) == (plain.stdout, plain.stderr)
    check(tmp_path, agent, (python, *UVICORN), receiver)


@pytest.mark.thorough
def test_no_package_of_opentelemetry_appears_that_the_service_has_not(agent: Path) -> None:
    code = "import importlib.util as u; print(u.find_spec('opentelemetry'))"
    env = {**services.clean_environment(), **variables(agent)}
    done = subprocess.run([bare("3.11"), "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.thorough
def test_a_pythonpath_of_the_image_and_its_sitecustomize_stay(
    agent: Path, receiver: tuple[Sink, HttpSink], tmp_path: Path
) -> None:
    """operator#1884, operator#2409."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys\nsys.own = 'stagetrace.activate' in sys.modules\n")
    (own / "theirs.py").write_text("NAME = 'theirs'\n")
    code = "import os, sys, theirs; print(theirs.NAME, sys.own, os.environ['PYTHONPATH'], sys.path[1])"
    env = {**services.clean_environment(), **variables(agent, own=str(own))}
    done = subprocess.run([bare("3.13"), "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["theirs", "True", env["PYTHONPATH"], str(own)]
    check(tmp_path, agent, (bare("3.13", "uvicorn"), *UVICORN), receiver, own=str(own))


@pytest.mark.thorough
@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(4)", "raise KeyError('x')", "os.kill(os.getpid(), 15)"])
def test_a_program_that_forks_ends_as_without_the_agent(end: str, agent: Path) -> None:
    """As a worker of celery does: the child works, the parent waits for it."""
    code = f"""
import os, sys
if (pid := os.fork()) == 0:
    print("child", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("parent", flush=True)
{end}
"""
    python = bare("3.12")
    runs = [
        subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, check=False)
        for env in (services.clean_environment(), {**services.clean_environment(), **variables(agent)})
    ]
    untraced, injected = ((one.returncode, one.stdout, one.stderr) for one in runs)
    assert injected == untraced


@pytest.mark.thorough
def test_a_python_that_is_too_old_runs_on_and_one_line_says_so(agent: Path) -> None:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    old = next((one for minor in "9876" for one in sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python"))), None)
    if old is None:
        missing("there is no Python before 3.10 in pyenv")
    env = {**services.clean_environment(), **variables(agent)}
    code = "import sys; print('out'); sys.exit(3)"
    done = subprocess.run([str(old), "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert done.stderr.startswith("stagetrace: the injected agent records nothing (RuntimeError: Python 3.")
    assert done.stderr.count("\n") == 1


@pytest.mark.thorough
@pytest.mark.parametrize("broken", ["packages/stagetrace/activate.py", "packages"])
def test_an_agent_that_is_broken_is_said_in_a_line_and_the_program_runs(
    broken: str, agent: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "agent"
    shutil.copytree(agent, folder)
    path = folder / broken
    if path.is_dir():
        shutil.rmtree(path)
    else:
        for compiled in path.parent.glob("__pycache__/activate.*"):
            compiled.unlink()
        path.write_text("raise RuntimeError('broken')\n")
    env = {**services.clean_environment(), **variables(folder)}
    code = "import sys; print('out'); sys.exit(3)"
    done = subprocess.run([bare("3.11"), "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert done.stderr.startswith("stagetrace: the injected agent records nothing (")
    assert done.stderr.count("\n") == 1


@pytest.mark.thorough
def test_the_agent_can_be_switched_off(agent: Path) -> None:
    code = "import sys; print('stagetrace.system.import_hooks' in sys.modules)"
    for switch, is_on in ({}, "True"), ({"STAGETRACE": "0"}, "False"):
        env = {**services.clean_environment(), **variables(agent, **switch)}
        done = subprocess.run([bare("3.11"), "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == is_on


@pytest.mark.thorough
def test_a_stagetrace_of_the_services_own_wins_and_starts_once(
    agent: Path, receiver: tuple[Sink, HttpSink], tmp_path: Path
) -> None:
    python = bare_with_own("3.11")
    finders = "len([one for one in sys.meta_path if 'PostImport' in repr(one)])"
    code = f"import stagetrace, sys; print(stagetrace.__file__, {finders})"
    env = {**services.clean_environment(), **variables(agent)}
    done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, check=True)
    where, count = done.stdout.split()
    assert not where.startswith(str(agent))
    assert count == "1"
    log, _ = check(tmp_path, agent, (python, *UVICORN), receiver)
    assert log.count("recording in process") == 1


def bare_with_own(version: str) -> str:
    """Return the interpreter of an environment in which stagetrace is installed, too."""
    python, built = interpreter(version), wheel("3.11")

    def make(folder: Path) -> None:
        uv("venv", "--allow-existing", "--python", python, str(folder))
        uv("pip", "install", "--python", str(folder), "uvicorn")
        uv("pip", "install", "--no-deps", "--python", str(folder), str(built))

    return str(once("injected", [python, "own", str(built)], make) / "bin" / "python")


def test_the_folder_is_small_readable_and_needs_nothing(agent: Path) -> None:
    files = [path for path in agent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000_000
    assert {path.name for path in (agent / "packages").iterdir()} == {
        "stagetrace",
        "stagetrace_contrib",
        "stagetrace-0.1.0.dist-info",
    }
    assert list(agent.glob("opentelemetry/**/__init__.py")) == []
    assert not any(path.name.startswith(("test", "sitecustomize")) for path in (agent / "packages").rglob("*.py"))
