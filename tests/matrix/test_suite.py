"""Tests of what records, in each Python that docs/compatibility.md claims: this run itself is in one of them."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from environments import ROOT, once, uv
from matrix.environment import AS_OF, wheel
from matrix.pythons import CLAIMED, interpreter
from services import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES: Final = (
    *("pytest", "pytest-timeout", "hypothesis", "opentelemetry-sdk"),
    "opentelemetry-exporter-otlp-proto-http",
)
# Those that need no fixture of others, and no package of a server or a model.
TESTS: Final = (
    *("tests/tracing/test_span.py", "tests/tracing/test_propagation.py", "tests/bridge"),
    *("tests/otlp/test_encoder.py", "tests/recording/test_marks.py", "tests/recording/test_own_span.py"),
    "tests/policy/test_policy.py",
)
LEAST: Final = 60
WITH_GIL: Final = tuple(one for one in CLAIMED if not one.endswith("t"))  # hypothesis cannot be had for the others


@pytest.mark.thorough
@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    "version", [one for one in CLAIMED if not one.endswith("t")]
)  # for which hypothesis has no build
def test_what_records_passes_its_tests_in_each_python(version: str) -> None:
    python, built = interpreter(version), wheel("3.11")

    def make(folder: Path) -> None:
        uv("venv", "--allow-existing", "--python", python, str(folder))
        uv("pip", "install", "--exclude-newer", AS_OF, "--python", str(folder), *PACKAGES)
        uv("pip", "install", "--no-deps", "--python", str(folder), str(built))

    folder = once("suite", [python, AS_OF, str(built), *PACKAGES], make)
    argv = [
        str(folder / "bin" / "python"),
        "-m",
        "pytest",
        "--noconftest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=ci",
        *TESTS,
    ]
    env = {**clean_environment(), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST
