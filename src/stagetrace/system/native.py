"""The extension in C, `stagetrace._native`: whether it is there, and wanted (docs/decisions/048)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stagetrace import settings


def _load() -> Any:
    if not settings.NATIVE.read():
        return None
    try:
        return import_module("stagetrace._native")
    except Exception:  # noqa: BLE001 -- whatever is wrong with it, the Python implementation is there
        return None


_extension = _load()


def native(group: str) -> Any:
    """Return the extension with the functions and types of one group of `_native.GROUPS`.

    None where it was not built, STAGETRACE_NATIVE=0 forbids it, or another interpreter of this process has it.
    """
    if _extension is None:
        return None
    try:
        _extension.prepare(group)
    except Exception:  # noqa: BLE001 -- as above
        return None
    return _extension
