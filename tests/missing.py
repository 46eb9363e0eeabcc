"""What a machine lacks for a test: a person's may, CI's may not, or a green run could have tested nothing."""

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


def unused(extension: str) -> NoReturn:
    """Tell of an extension that is not in use: missing, or else broken, which fails anywhere."""
    try:
        import_module(extension)
    except ModuleNotFoundError:
        missing(f"{extension} is not built: `python hatch_build.py` builds it, or says why not")
    pytest.fail(f"{extension} is built, and not used")
