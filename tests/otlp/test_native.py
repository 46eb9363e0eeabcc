"""Which implementation a real service uses; a wheel has that in C where it can be compiled, and is pure where not."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import sysconfig
import zipfile
from typing import TYPE_CHECKING

import pytest

from missing import unused
from otlp.schedules import ROOT, found_first
from services import PYTHON, run_service
from sink import run_sink
from stagetrace.otlp import encode as stages
from stagetrace.semconv import INFERENCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

SERVE = """
import os
import uvicorn, ml
from stagetrace.otlp import encode as stages

ml.app.add_api_route("/native", lambda: [stages.NATIVE, stages.encode_request is stages._encode_request])
uvicorn.run(ml.app, port=int(os.environ["PORT"]), log_level="warning")
"""


@pytest.mark.parametrize("wanted", ["0", "1", None])
def test_a_real_service_is_recorded_by_either(tmp_path: Path, wanted: str | None) -> None:
    """STAGETRACE_NATIVE=0 forbids the one in C; the request arrives tiled with it and without."""
    if wanted != "0" and not stages.NATIVE:
        unused()
    with run_sink() as sink:
        env = sink.environment()
        if wanted is not None:
            env["STAGETRACE_NATIVE"] = wanted
        with run_service(tmp_path, env=env, argv=[PYTHON, "-c", SERVE]) as service:
            assert service.client.get("/native").json() == ([False, True] if wanted == "0" else [True, False])
            trace_id, answer = service.call("POST", "/predict", json={"inference_s": 0.01})
            assert answer.status_code == 200
            request = sink.tiled(trace_id)
    assert INFERENCE in request.names
    assert "stagetrace.otlp" not in service.log


@pytest.fixture
def extension() -> str:
    """Return what a wheel has of the C sources."""
    for_all = runpy.run_path(str(ROOT / "setup.py"))["FOR_ALL"]
    return f"stagetrace/_native{'.abi3.so' if for_all else sysconfig.get_config_var('EXT_SUFFIX')}"


def build(into: Path, *what: str, **env: str) -> tuple[Path, str]:
    """Build this package; return the wheel and the log."""
    done = subprocess.run(
        [PYTHON, "-m", "build", "--no-isolation", *what, "--outdir", str(into), str(ROOT)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel, done.stdout + done.stderr


REPORT = """
from otlp import schedules as s
from stagetrace.otlp import encode as stages

encoded = [s.messages(s.encoded(how, s.typical().stages(how))) for how in (s.BOTH[-1], s.IN_PYTHON)]
print(stages.NATIVE, encoded[0] == encoded[1])
print(stages.__file__)
"""


def report_of(wheel: Path, folder: Path) -> list[str]:
    """Install a wheel; return whether it has the extension in C, and whether that works."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    done = subprocess.run(
        [PYTHON, "-c", REPORT], env=found_first(folder), capture_output=True, text=True, timeout=60, check=True
    )
    *found, where = done.stdout.split()
    assert where.startswith(str(folder))
    return found


@pytest.mark.usefixtures("native")
def test_a_wheel_made_from_the_source_archive_has_the_twin_and_the_platforms_tag(
    tmp_path: Path, extension: str
) -> None:
    wheel, _ = build(tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read("stagetrace-0.1.0.dist-info/WHEEL").decode()
    assert extension in names
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert "Root-Is-Purelib: false" in metadata
    assert "-none-any" not in metadata
    if extension.endswith(".abi3.so"):
        assert "Tag: cp310-abi3-" in metadata
    assert report_of(wheel, tmp_path / "site") == ["True"] * 2


@pytest.mark.parametrize(("version", "for_all"), [((3, 10), True), ((3, 11), True), ((3, 12), False), ((3, 14), False)])
def test_what_a_newer_python_compiles_is_for_that_alone(
    version: tuple[int, int], for_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its headers count no references to None, and so it ended a service under an older one."""
    runpy.run_path(str(ROOT / "setup.py"))  # imports setuptools before it is told a wrong version
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: None)
    assert runpy.run_path(str(ROOT / "setup.py"))["FOR_ALL"] is for_all


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"CC": "no-such-compiler"}, "No such file or directory: 'no-such-compiler'"),
        ({"CC": "false"}, "false failed with 1"),
        ({"CFLAGS": "-include no-such-header.h"}, "failed with 1"),
        ({"STAGETRACE_NATIVE": "0"}, "STAGETRACE_NATIVE=0"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_and_says_so_in_one_line(
    tmp_path: Path, env: dict[str, str], why: str
) -> None:
    """Even where the source tree holds an extension that an editable installation has compiled."""
    wheel, said = build(tmp_path / "dist", "--wheel", **env)
    assert wheel.name.endswith("-py3-none-any.whl")
    (line,) = [line for line in said.splitlines() if "without the C extension" in line]
    assert why in line
    if "CFLAGS" in env:
        assert "no-such-header.h" in said  # the compiler's own words
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".c", ".h"))]
    assert report_of(wheel, tmp_path / "site") == ["False", "True"]
