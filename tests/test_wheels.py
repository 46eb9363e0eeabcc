"""What `make wheels` builds can be uploaded, has the right tags, and installs and records in each Python, alone."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from platform import machine

import pytest
import yaml

from matrix.pythons import interpreter
from otlp.receiver import run_receiver
from services import clean_environment

ROOT = Path(__file__).parent.parent
SERVER = 2  # the kind of an entry span
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TAGS = {f"{libc}_{arch}": arch for libc in ("manylinux_2_17", "musllinux_1_2") for arch in ("x86_64", "aarch64")}
MACHINES = {"x86_64": 62, "aarch64": 183}
# Sends itself a request, since it is alone: no other package is there.
SERVICE = """
import sys, threading, urllib.request
from wsgiref.simple_server import make_server

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]

server = make_server("127.0.0.1", 0, app)
thread = threading.Thread(target=server.serve_forever)
thread.start()
print(urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/wheel").read().decode())
server.shutdown()
thread.join()
from stagetrace import _native
from importlib.metadata import distributions
print(*sorted(one.name for one in distributions()))
"""

heavy = pytest.mark.heavy
pytestmark = pytest.mark.timeout(900)


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env={**clean_environment(), **env},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what `make wheels` builds; that runs `twine check` and `abi3audit` itself."""
    run("make", "wheels")
    folder = tmp_path_factory.mktemp("wheels") / "dist"
    shutil.copytree(ROOT / "dist", folder)
    return folder


def of_tag(dist: Path, tag: str) -> Path:
    (wheel,) = dist.glob(f"stagetrace-*-cp310-abi3-{tag}.whl")
    return wheel


@heavy
def test_there_is_a_wheel_of_each_tag_and_the_source(dist: Path) -> None:
    assert len(list(dist.glob("*.whl"))) == len(TAGS)
    assert [of_tag(dist, tag) for tag in TAGS]
    assert len(list(dist.glob("stagetrace-*.tar.gz"))) == 1
    assert (dist / "stagetrace.cdx.json").stat().st_size


@heavy
@pytest.mark.parametrize("tag", TAGS)
def test_the_extension_is_for_the_tags_machine_and_libc(tag: str, dist: Path) -> None:
    """`auditwheel` looks into the wheels of manylinux; it needs a system with musl for the others."""
    with zipfile.ZipFile(of_tag(dist, tag)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".so"))
        library = wheel.read(name)
    assert name.endswith(".abi3.so")
    assert struct.unpack_from("<H", library, 18) == (MACHINES[TAGS[tag]],)  # e_machine of ELF
    assert (b"\0libc.so.6\0" in library) == tag.startswith("manylinux")
    if tag.startswith("musl"):
        return
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", of_tag(dist, tag)).split())
    assert f'is consistent with the following platform tag: "{tag}"' in shown


@heavy
@pytest.mark.parametrize("version", VERSIONS)
def test_a_wheel_installs_and_records_alone(version: str, dist: Path, tmp_path: Path) -> None:
    wheel = of_tag(dist, f"manylinux_2_17_{machine()}")
    python = tmp_path / "bin" / "python"
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--allow-existing", "--python", interpreter(version), tmp_path)
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", tmp_path, wheel)
    (tmp_path / "service.py").write_text(SERVICE)
    with run_receiver() as receiver:
        env = {"STAGETRACE": "1", "STAGETRACE_SLA": "* within 1us", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http}
        shown = run(python, tmp_path / "service.py", **env)
        receiver.wait_for(lambda found: bool(found.spans()))
        (entry,) = [span for span in receiver.spans() if span.kind == SERVER]
    assert shown.splitlines()[0] == "ok"
    assert "stagetrace" in shown.splitlines()
    attributes = {one.key: one.value for one in entry.attributes}
    assert attributes["url.path"].string_value == "/wheel"
    assert attributes["sla.breached"].bool_value
    assert "Traceback" not in shown


def test_the_workflow_builds_as_this_does_and_publishes_by_trust() -> None:
    """It is read here, and has not been run."""
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert "make wheels" in text
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert [step["uses"].partition("@")[0] for step in jobs["publish"]["steps"]] == [
        *("actions/download-artifact", "pypa/gh-action-pypi-publish"),
    ]
    assert "secrets." not in text
