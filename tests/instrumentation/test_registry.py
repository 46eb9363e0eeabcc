"""The registry of patches: each entry can be loaded, and the import rules name each patch file."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import tomllib  # type: ignore[import-not-found]  # there from 3.11 on, which the tests need

from stagetrace.instrumentation.registry import PATCHES, wanted

FILES = {patch.partition(":")[0] for patch in PATCHES.values()}


@pytest.mark.parametrize("patch", sorted({*wanted().values()}))
def test_each_entry_names_a_function_that_takes_the_module(patch: str) -> None:
    path, _, name = patch.partition(":")
    function: Any = getattr(importlib.import_module(path), name)
    assert name.startswith("patch_")
    assert [*inspect.signature(function).parameters] == ["module"]


def test_the_import_rules_name_each_patch_file() -> None:
    config = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    (independent,) = (one["modules"] for one in contracts if one["name"] == "Patches are independent of each other")
    assert {one for one in independent if not one.endswith(".*")} == FILES
