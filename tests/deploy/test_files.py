"""The other files of deploy/, and the image of the agent: their commands run here, without Docker and systemd."""

from __future__ import annotations

import configparser
import shlex
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from backend.running import COMMAND, FREE_PORTS, PROTOBUF, request, serving
from deploy.rendered import DEPLOY
from dockerfile import instructions, replay
from missing import missing
from stagetrace.cli.inject.pods import FOLDER, Agent, inject

if TYPE_CHECKING:
    from pathlib import Path

ROOT = DEPLOY.parent
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["stagetrace"]
UNIT = DEPLOY / "systemd/stagetrace.service"
AGENT = ROOT / "examples/kubernetes/Dockerfile.agent"
TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105
# Prints the groups of functions in C.
NATIVE = "from stagetrace import _native; print(*_native.GROUPS)"


@pytest.mark.usefixtures("services")
def test_the_image_of_the_back_end_receives_spans(tmp_path: Path) -> None:
    """Started as by compose.yaml, on loopback and on free ports."""
    image = replay(DEPLOY / "Dockerfile", ROOT, tmp_path / "image")
    program, verb, *flags = image.command
    here = {"--data=/data/store": f"--data={tmp_path / 'store'}", "--host=0.0.0.0": "--host=127.0.0.1"}
    assert here.keys() <= set(flags)
    argv = [str(image.venv / "bin" / program), verb, *(here.get(one, one) for one in flags), *FREE_PORTS, "--json"]
    env = {**COMPOSE["environment"], "STAGETRACE_TOKEN": TOKEN}
    with serving(argv, tmp_path / "log", env) as (ready, _):
        at = f"http://127.0.0.1:{ready['http_port']}"
        assert httpx.get(f"{at}/health").status_code == 200
        headers = {"content-type": PROTOBUF, "authorization": f"Bearer {TOKEN}"}
        sent = httpx.post(f"{at}/v1/traces", content=request("a").SerializeToString(), headers=headers)
        assert sent.status_code == 200
    python = [str(image.venv / "bin/python"), "-c", NATIVE]
    done = subprocess.run(python, cwd=tmp_path, env=image.environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split()


def test_compose_publishes_what_the_image_serves_on_loopback() -> None:
    said = dict(instructions((DEPLOY / "Dockerfile").read_text()))
    assert [one.rpartition(":")[2] for one in COMPOSE["ports"]] == said["EXPOSE"].split()
    assert all(one.startswith("127.0.0.1:") for one in COMPOSE["ports"])
    assert COMPOSE["volumes"] == ["stagetrace-data:/data"]
    assert '"--data=/data/store"' in said["CMD"]
    assert COMPOSE["environment"]["STAGETRACE_TOKEN"].startswith("${STAGETRACE_TOKEN:?")


def unit() -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(strict=True)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(UNIT, "utf-8")
    return found


def test_the_unit_starts_the_back_end(tmp_path: Path) -> None:
    """Its command with its variables, in a folder of this machine."""
    service = unit()["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program == "/opt/stagetrace/bin/stagetrace"
    assert arguments == ["up"]
    assert service["StateDirectory"] == "stagetrace"
    env = dict(one.split("=", 1) for one in shlex.split(service["Environment"].replace("%S", str(tmp_path))))
    (tmp_path / "stagetrace").mkdir()
    with serving([*COMMAND, *FREE_PORTS, "--json"], tmp_path / "log", env) as (ready, _):
        assert ready["data"] == str(tmp_path / "stagetrace/store")
        assert ready["host"] == "127.0.0.1"


def test_systemd_knows_each_line_of_the_unit(tmp_path: Path) -> None:
    """With a program that exists on this machine."""
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze is needed: apt-get install systemd")
    copy = tmp_path / UNIT.name
    text = UNIT.read_text("utf-8")

    def verify(text: str) -> subprocess.CompletedProcess[str]:
        copy.write_text(text.replace("/opt/stagetrace/bin/stagetrace", "/bin/true"))
        return subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)

    done = verify(text)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ProtectHom" in verify(text.replace("ProtectHome=", "ProtectHom=")).stderr


@pytest.mark.parametrize("is_musl", [False, True])
def test_the_image_of_the_agent_is_copied_by_any_user(tmp_path: Path, *, is_musl: bool) -> None:
    """Built of files that only their owner can read; the init container copies them into its volume."""
    context = tmp_path / "context"
    for name in ("autoinstrumentation", "autoinstrumentation-musl"):
        site = context / "dist/agent" / name / "opentelemetry/instrumentation/auto_instrumentation"
        site.mkdir(parents=True)
        for folder in (site, *site.parents):
            if context in folder.parents:
                folder.chmod(0o700)
        (site / "sitecustomize.py").write_text(f"print({name!r})")
        (site / "sitecustomize.py").chmod(0o600)
    image = replay(AGENT, context, tmp_path / "image")
    for path in (image.root / "autoinstrumentation").rglob("*"):
        mode = path.stat().st_mode
        assert mode & stat.S_IROTH, path
        assert path.is_file() or mode & stat.S_IXOTH, path
    pod: Any = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}
    (copying,) = inject(pod, Agent("agent", is_musl=is_musl))[0]["spec"]["initContainers"]
    volume = tmp_path / "volume"
    volume.mkdir()
    command = [
        one.replace("/autoinst", f"{image.root}/autoinst").replace(FOLDER, str(volume)) for one in copying["command"]
    ]
    subprocess.run(command, check=True)
    (variable,) = (
        one for one in inject(pod, Agent("agent"))[0]["spec"]["containers"][0]["env"] if one["name"] == "PYTHONPATH"
    )
    env = {"PYTHONPATH": variable["value"].replace(FOLDER, str(volume))}
    done = subprocess.run([sys.executable, "-c", ""], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"autoinstrumentation{'-musl' if is_musl else ''}\n"


def test_the_image_of_the_agent_has_a_user_with_a_number() -> None:
    """Kubernetes refuses to start a pod with `runAsNonRoot` of an image whose user is root, or has a name."""
    user = dict(instructions(AGENT.read_text()))["USER"]
    assert all(int(one) > 0 for one in user.split(":"))


def test_only_what_an_image_needs_is_sent_to_its_build() -> None:
    text = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert text == (ROOT / "examples/Dockerfile.dockerignore").read_text()
