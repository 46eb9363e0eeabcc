"""Variables are read in one place; misspelt ones, and those without effect, are reported."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services import run_python, run_service
from stagetrace import settings
from stagetrace.system.setting_problems import misspelt, without_switch

if TYPE_CHECKING:
    import subprocess

ROOT = Path(__file__).parent.parent


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"STAGETRACE_STATUS": "0", "OTEL_TRACES_EXPORTER": "none", **env}
    return run_python("-m", "stagetrace.cli.main", *arguments, **env)


def test_each_setting_is_documented_and_no_other_variable_of_ours() -> None:
    page = (ROOT / "docs/environment.md").read_text()
    assert set(settings.SETTINGS) <= set(re.findall(r"`([A-Z]\w*)`", page))
    ours = {name for name in settings.SETTINGS if name.startswith("STAGETRACE")}
    assert ours == set(re.findall(r"`(STAGETRACE\w*)`", page))


def test_each_setting_has_a_side_and_a_description() -> None:
    for name, setting in settings.SETTINGS.items():
        assert setting.side in (settings.RECORDING, settings.READING, settings.BOTH), name
        assert setting.about, name


# What loads as the interpreter starts, or stands for a script of its own, and must not load `config`.
READS_FOR_ITSELF = {"activate.py", "patches/registry.py", "_site/sitecustomize.py"}


def reads_of_the_environment(code: str) -> list[int]:
    """Return the lines that use `os.environ` or `os.getenv`, but to set a variable or to pass all to a process."""
    tree = ast.parse(code)
    allowed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):  # {**os.environ, ...}
            allowed.update(value for key, value in zip(node.keys, node.values, strict=True) if key is None)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            allowed.add(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # os.environ.setdefault(...)
            called = node.value.func
            if isinstance(called, ast.Attribute) and called.attr == "setdefault":
                allowed.add(called.value)
    names = ("environ", "environb", "getenv", "getenvb")
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in names]
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "os"]
    lines = [node.lineno for node in used if ast.unparse(node.value) == "os" and node not in allowed]
    return lines + [node.lineno for node in imported if {alias.name for alias in node.names} & {*names}]


@pytest.mark.parametrize(
    "code",
    [
        "os.environ['X']",
        "os.environ.get('X')",
        "'X' in os.environ",
        "os.getenv('X')",
        "from os import environ",
        "f(os.environ)",
        "x = os.environ.setdefault('X', '')",
    ],
)
def test_a_read_of_the_environment_is_found(code: str) -> None:
    assert reads_of_the_environment(code) == [1]
    assert reads_of_the_environment("env = {**os.environ, 'X': '1'}; os.environ['X'] = '1'") == []


def test_variables_are_read_in_config_alone() -> None:
    package = ROOT / "src" / "stagetrace"
    for path in (ROOT / "src").rglob("*.py"):
        name = path.relative_to(package).as_posix() if path.is_relative_to(package) else path.name
        code = path.read_text()
        if name != "settings.py" and name not in READS_FOR_ITSELF and re.search("environ|getenv", code):
            assert reads_of_the_environment(code) == [], name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STAGETRACE_SLO", "STAGETRACE_SLA"),
        ("STAGETRACE_SLAS", "STAGETRACE_SLA"),
        ("STAGETRACE_LOG_LEVEL", "STAGETRACE_LOG"),
        ("STAGETRACE_RETENTOIN", "STAGETRACE_RETENTION"),
        ("STAGTRACE_SLA", "STAGETRACE_SLA"),
        ("STAGE_TRACE", "STAGETRACE"),
        ("STAGETRACE_VERBOSITY", None),
    ],
)
def test_what_was_probably_meant(name: str, meant: str | None) -> None:
    assert misspelt({name: "1", "STAGETRACE": "1", "STAGETRACE_SLA": "* within 1s"}) == [(name, meant)]


def test_variables_of_others_are_ignored() -> None:
    """Kubernetes and Docker set variables for each service that runs beside a container, here `stagetrace`."""
    host, port = "10.96.0.1", "tcp://10.96.0.1:4317"
    injected = {
        "STAGETRACE_SERVICE_HOST": host,
        "STAGETRACE_SERVICE_PORT": "4317",
        "STAGETRACE_SERVICE_PORT_OTLP_GRPC": "4317",
        "STAGETRACE_PORT": port,
        "STAGETRACE_PORT_4317_TCP": port,
        "STAGETRACE_PORT_4317_TCP_ADDR": host,
        "STAGETRACE_BACKEND_PORT": port,
    }
    assert misspelt({**injected, "STARSHIP_SHELL": "zsh", "STAGE": "prod", "STAGING": "1"}) == []
    assert misspelt({"STAGETRACE_HTPP_PORT": "4318"}) == [("STAGETRACE_HTPP_PORT", "STAGETRACE_HTTP_PORT")]


def test_what_does_nothing_without_the_switch() -> None:
    given = {"STAGETRACE_SLA": "* within 1s", "STAGETRACE_SPOOL": "/spool", "STAGETRACE_STORE": "x"}
    assert without_switch(given) == ["STAGETRACE_SLA", "STAGETRACE_SPOOL"]
    assert without_switch({**given, "STAGETRACE": "0"}) == []  # off on purpose
    assert without_switch({"STAGETRACE_SLA": ""}) == []


def test_a_command_reports_what_was_probably_meant_and_goes_on(tmp_path: Path) -> None:
    """Otherwise it would read another store than the intended one, without an error."""
    done = run("services", "--store", str(ROOT / "tests/none.jsonl"), STAGETRACE_STROE=str(tmp_path))
    first, *rest = done.stderr.splitlines()
    assert first == "stagetrace: STAGETRACE_STROE is no variable of stagetrace: did you mean STAGETRACE_STORE?"
    assert rest
    done = run("completion", "bash", STAGETRACE_STROE=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_reports_both() -> None:
    done = run("doctor", "--json", STAGETRACE_SLA="* within 1s", STAGETRACE_SPOL="/spool", STAGETRACE_X="1")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["variables"]["state"] == checks["switch"]["state"] == "warn"
    assert (
        "STAGETRACE_SPOL is no variable of stagetrace: did you mean STAGETRACE_SPOOL?" in checks["variables"]["found"]
    )
    assert "STAGETRACE_X is no variable of stagetrace" in checks["variables"]["found"]
    assert checks["switch"]["found"].startswith("STAGETRACE_SLA is set and STAGETRACE is not:")
    assert checks["switch"]["mend"] == "set STAGETRACE=1 for them"


@pytest.mark.parametrize("value", ["off", "no", "None"])
def test_doctor_reports_that_a_word_for_off_switches_on(value: str) -> None:
    done = run("doctor", "--json", STAGETRACE=value)
    (check,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "switch"]
    assert check["state"] == "warn"
    assert check["found"] == f"STAGETRACE={value} switches recording on, as all but 0 and false"


@pytest.mark.thorough
def test_up_reports_what_services_started_beside_it_lack(tmp_path: Path) -> None:
    """It does so first, and so even if it cannot start."""
    (tmp_path / "file").touch()
    done = run("up", "--data", str(tmp_path / "file"), STAGETRACE_SLA="* within 1s")
    assert "STAGETRACE_SLA is set and STAGETRACE is not" in done.stderr.splitlines()[0]
    done = run("up", "--data", str(tmp_path / "file"), STAGETRACE_SLA="* within 1s", STAGETRACE="1")
    assert "STAGETRACE_SLA" not in done.stderr


@pytest.mark.usefixtures("services")
def test_a_service_logs_it_once_as_it_starts(tmp_path: Path) -> None:
    env = {"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none", "STAGETRACE_SLO": "* within 1s"}
    with run_service(tmp_path, env=env) as service:
        service.call("GET", "/health")
    assert service.log.count("is no variable of stagetrace: did you mean STAGETRACE_SLA?") == 1
