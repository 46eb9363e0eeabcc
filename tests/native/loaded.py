"""Check which native extensions a process has loaded; `sanitize.py` makes this a plugin of pytest."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from hypothesis import HealthCheck, settings

SOURCES = Path(__file__).parents[2] / "src"
EXTENSIONS = tuple(
    ".".join(source.relative_to(SOURCES).with_suffix("").parts) for source in sorted(SOURCES.glob("stagetrace/**/_*.c"))
)
USERS = (
    "instrumentation.asgi.request",
    "otlp.decode.native",
    "recording.pool_task",
    "runtime.sigterm",
    "sla.entry_recorder",
)  # these import all extensions
FOLDER = "STAGETRACE_TEST_SANITIZED"  # where the extensions with sanitizers are; set by sanitize.py


def load() -> list[str]:
    """Import the extensions as the package does; return those that are not there."""
    for name in USERS:
        import_module(f"stagetrace.{name}")
    return [name for name in EXTENSIONS if name not in sys.modules]


def check() -> None:
    """Fail if one of our extensions is loaded from another folder than that of `sanitize.py`, where that runs."""
    folder = os.environ.get(FOLDER)
    files = [sys.modules[name].__file__ or "" for name in EXTENSIONS if name in sys.modules]
    wrong = [file for file in files if folder and Path(folder) not in Path(file).parents]
    if wrong:
        raise RuntimeError(f"these extensions were built without sanitizers: {', '.join(wrong)}")


def pytest_configure() -> None:
    """Let hypothesis take the time that sanitizers need."""
    settings.register_profile("sanitized", suppress_health_check=[HealthCheck.too_slow], deadline=None)
    settings.load_profile("sanitized")


def pytest_sessionstart() -> None:
    """Load all extensions before a test can find others."""
    absent = load()
    if absent:
        raise RuntimeError(f"these extensions cannot be loaded: {', '.join(absent)}")
    check()


def pytest_sessionfinish() -> None:
    """Check once more what is loaded."""
    check()
