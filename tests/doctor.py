"""Run `stagetrace doctor` in an environment of a test's own, and read what it finds."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING
from unittest.mock import patch

from backends import free_port
from services import PYTHON, clean_environment, run_python
from stagetrace.cli.main import main
from stagetrace.output.processes import FAIL, OK, Check

if TYPE_CHECKING:
    from pathlib import Path


DOCTOR = [PYTHON, "-m", "stagetrace.cli.main", "doctor"]


def made(check: dict[str, str]) -> Check:
    """Return a check out of `--json`."""
    return Check(check["name"], check["state"], check["found"], check["mend"])


def settings(folder: Path, **env: str) -> dict[str, str]:
    """Return an environment that hides the processes of other tests and sets the endpoint."""
    ports = {f"STAGETRACE_{name}PORT": str(free_port()) for name in ("HTTP_", "QUERY_HTTP_")}
    own = {"STAGETRACE_STATUS": str(folder / "status"), "OTEL_TRACES_EXPORTER": "none"}
    return clean_environment() | own | ports | env


def sending_to(protocol: str, endpoint: str) -> dict[str, str]:
    exporter = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    return {**exporter, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it as a process."""
    return run_python("-m", "stagetrace.cli.main", "doctor", *arguments, **settings(folder, **env))


def run_here(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it in this process, which saves the start of another."""
    out, err = StringIO(), StringIO()
    with (
        patch.dict(os.environ, settings(folder, **env), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = main(["doctor", *arguments])
    return subprocess.CompletedProcess(["doctor", *arguments], code, out.getvalue(), err.getvalue())


def checks(folder: Path, *arguments: str, **env: str) -> dict[str, list[Check]]:
    """Return the checks by name."""
    done = run_here(folder, *arguments, "--json", **env)
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    found: dict[str, list[Check]] = {}
    for one in answer["checks"]:
        found.setdefault(one["name"], []).append(made(one))
    assert answer["ok"] is all(check.state != FAIL for group in found.values() for check in group)
    assert done.returncode == (0 if answer["ok"] else 1)
    assert all(check.fix for group in found.values() for check in group if check.state != OK)
    return found
