"""Native functions survive code that takes away, in their middle, the objects that they work with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from missing import unused
from native.loaded import load
from native.scenarios import SCENARIOS

pytestmark = pytest.mark.native
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def _built() -> None:
    if load():
        unused()


@pytest.mark.usefixtures("_built")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_native_function_survives(scenario: str) -> None:
    """Python's own debug allocator overwrites what is freed, so that a use of it ends the process."""
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(TESTS)])
    env = {"PYTHONMALLOC": "debug", **os.environ, "PYTHONPATH": path}
    argv = [sys.executable, "-X", "faulthandler", "-m", "native.scenarios", scenario]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
