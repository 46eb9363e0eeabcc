"""What the patches of Ray Serve share: the entry in a call's metadata, and a check of Ray's private functions."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

TICKET = "_stagetrace"  # in the metadata of a call: the request, the kernel's name, when the call was handed on


def require(function: Any, *names: str) -> None:
    """Raise TypeError unless a private function of Ray's takes just these parameters: another release is left alone."""
    found = tuple(inspect.signature(function).parameters)
    if found != names:
        raise TypeError(f"{function.__qualname__} takes {', '.join(found)}")


@functools.cache
def kernel() -> str:
    """Return the name of the running kernel, under which all processes read the same clock; empty if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
