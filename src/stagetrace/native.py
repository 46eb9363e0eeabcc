"""The parts that are in C as well: whether they are there, and wanted (docs/decisions/011)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stagetrace import config

if TYPE_CHECKING:
    from types import ModuleType


def native(name: str) -> ModuleType | None:
    """Return a module in C, or None where it was not built or STAGETRACE_NATIVE=0 forbids it."""
    if not config.NATIVE.read():
        return None
    try:
        return import_module(name)
    except Exception:  # noqa: BLE001 -- whatever is wrong with it, the reference is there
        return None
