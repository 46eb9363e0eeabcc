"""examples/Dockerfile builds an image that serves and records: its lines are executed here, without Docker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from cli.running import cli
from dockerfile import instructions, replay
from services import run_service

if TYPE_CHECKING:
    from sink import Sink

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SERVICE: dict[str, Any] = COMPOSE["ticket-router"]
# Prints the groups of functions in C that can be used.
PREPARED = """
import stagetrace.protocols.asgi_request, stagetrace.sla.entry_recorder
from stagetrace import _native
from stagetrace.system.native import native
print(*(group for group in _native.GROUPS if native(group)))
"""
SOURCES = ROOT / "src"
POLICY = "collector-config/sla.yaml"


@pytest.mark.usefixtures("services")
def test_the_image_of_the_example_records_with_its_native_code(sink: Sink, tmp_path: Path) -> None:
    """Started as by docker-compose.yml, with other ports, it records one request with stages, verdict and service."""
    build = SERVICE["build"]
    image = replay(ROOT / build["context"] / build["dockerfile"], ROOT / build["context"], tmp_path / "image")
    python = image.venv / "bin/python"
    argv = [str(python), "-c", PREPARED]
    done = subprocess.run(argv, cwd=tmp_path, env=image.environment(), capture_output=True, text=True, check=False)
    assert not done.stderr
    used = {group for path in SOURCES.rglob("*.py") for group in re.findall(r"\bnative\(\"(\w+)\"", path.read_text())}
    assert used == set(done.stdout.split())

    argv = [str(image.venv / "bin" / image.command[0]), *image.command[1:]]
    assert "0.0.0.0" in argv  # noqa: S104 -- in a container, which publishes on loopback
    argv[argv.index("0.0.0.0")] = "127.0.0.1"  # noqa: S104
    argv[argv.index("--port") + 1] = "{port}"
    assert SERVICE["volumes"] == [f"./{POLICY}:{SERVICE['environment']['STAGETRACE_SLA']}:ro"]
    policy = str(ROOT / POLICY)
    env = {**SERVICE["environment"], "STAGETRACE_SLA": policy, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
    env["OTEL_BSP_SCHEDULE_DELAY"] = "50"
    with run_service(tmp_path, argv=argv, env={**env, "PYTHONPATH": str(image.folder)}) as service:
        body = {"text": "I was charged twice for order A-1"}
        request, response = sink.traced(service, "POST", "/predict", json=body)
    assert response.json()["team"] == "billing"
    assert "inference" in request.names
    assert request.entry.service == SERVICE["environment"]["OTEL_SERVICE_NAME"]
    assert request.entry.attributes["sla.objective"] == "POST /predict within 50ms"

    program, *arguments = COMPOSE["alert-rules"]["command"]
    written = tmp_path / "rules.yaml"
    arguments = [
        {"/rules/rules.yaml": str(written), "/etc/stagetrace/sla.yaml": policy}.get(one, one) for one in arguments
    ]
    subprocess.run([image.venv / "bin" / program, *arguments], env=image.environment(), check=True)
    assert written.read_text("utf-8") == cli("sla", "rules", "--policy", policy).stdout


def test_the_image_serves_where_compose_publishes() -> None:
    said = dict(instructions((ROOT / SERVICE["build"]["dockerfile"]).read_text()))
    (published,) = SERVICE["ports"]
    assert said["EXPOSE"] == published.rpartition(":")[2]
    assert f'"--port", "{said["EXPOSE"]}"' in said["CMD"]
