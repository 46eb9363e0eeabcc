"""Handle missing tools: a developer's machine may lack some; on CI a green run could otherwise have tested nothing."""

from __future__ import annotations

import os
from importlib import import_module
from typing import NoReturn

import pytest


def missing(why: str) -> NoReturn:
    """Skip the test; under CI fail it instead."""
    if os.environ.get("CI"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def unused() -> NoReturn:
    """Report that the extension in C is not in use: missing, or else broken, which fails anywhere."""
    try:
        import_module("stagetrace._native")
    except ModuleNotFoundError:
        missing("the extension is not built: `python setup.py build_ext --inplace` builds it, or says why not")
    pytest.fail("the extension is built, and not used")
