"""The registry of patches: each entry can be loaded, and each patch file is named."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from services import run_python
from stagetrace.patches.registry import PATCHES, wanted

WITH_OPENTELEMETRY = {"stagetrace.patches.opentelemetry"}  # which is imported where the service has imported that
# Each patch file in a process of its own.
IMPORT_EACH = """
import importlib, os, sys
for name in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(name)
        if "opentelemetry" in sys.modules:
            print(name, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


@pytest.mark.parametrize("patch", sorted({*wanted().values()}))
def test_each_entry_names_a_function_that_takes_the_module(patch: str) -> None:
    path, _, name = patch.partition(":")
    function: Any = getattr(importlib.import_module(path), name)
    assert name.startswith("patch_")
    assert [*inspect.signature(function).parameters] == ["module"]


def test_the_table_of_the_core_names_patches_of_the_core() -> None:
    """All modules of that package are independent of each other (pyproject.toml)."""
    assert all(patch.startswith("stagetrace.patches.") for patch in PATCHES.values())


@pytest.mark.parametrize("package", ["stagetrace.patches", "stagetrace_contrib"])
def test_each_patch_file_is_used(package: str) -> None:
    folder = Path(str(importlib.import_module(package).__file__)).parent
    found = {f"{package}.{path.stem if path.parent == folder else path.parent.name}" for path in folder.rglob("*.py")}
    used = {".".join(patch.partition(":")[0].split(".")[: package.count(".") + 2]) for patch in wanted().values()}
    others = {f"{package}.{name}" for name in ("__init__", "registry")}
    assert found - others == {name for name in used if name.startswith(f"{package}.")}


@pytest.mark.thorough
def test_patches_of_what_may_serve_nothing_load_no_opentelemetry() -> None:
    """A training script imports a model library, or a tokenizer, too."""
    done = run_python("-c", IMPORT_EACH, *sorted({patch.partition(":")[0] for patch in wanted().values()}))
    assert done.stderr == ""
    assert set(done.stdout.split()) == WITH_OPENTELEMETRY
