"""Check which native extension a process has loaded; `sanitize.py` makes this a plugin of pytest."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from hypothesis import HealthCheck, settings

from stagetrace.system.native import native

NAME = "stagetrace._native"
USERS = (
    "protocols.asgi_request",
    "system.sigterm",
    "sla.entry_recorder",
)  # these prepare all groups of functions
FOLDER = "STAGETRACE_TEST_SANITIZED"  # where the extension with sanitizers is; set by sanitize.py


def load() -> list[str]:
    """Import the extension as the package does; return the groups of functions that are not there, or its name."""
    for name in USERS:
        import_module(f"stagetrace.{name}")
    extension = sys.modules.get(NAME)
    return [NAME] if extension is None else [group for group in extension.GROUPS if native(group) is None]


def check() -> None:
    """Fail if our extension is loaded from another folder than that of `sanitize.py`, where that runs."""
    folder = os.environ.get(FOLDER)
    file = getattr(sys.modules.get(NAME), "__file__", None)
    if folder and file and Path(folder) not in Path(file).parents:
        raise RuntimeError(f"the extension was built without sanitizers: {file}")


def pytest_configure() -> None:
    """Let hypothesis take the time that sanitizers need."""
    settings.register_profile("sanitized", suppress_health_check=[HealthCheck.too_slow], deadline=None)
    settings.load_profile("sanitized")


def pytest_sessionstart() -> None:
    """Load the extension before a test can find another one."""
    absent = load()
    if absent:
        raise RuntimeError(f"this cannot be loaded: {', '.join(absent)}")
    check()


def pytest_sessionfinish() -> None:
    """Check once more what is loaded."""
    check()
