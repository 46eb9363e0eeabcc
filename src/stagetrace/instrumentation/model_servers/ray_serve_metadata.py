"""What the patches of Ray Serve share: the entry in a call's metadata, and a check of Ray's private functions."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

# In the metadata of a call: the request, the boot id of the kernel, the time of the call in ns since the epoch.
REFERENCE = "_stagetrace"


def require(function: Any, *names: str) -> None:
    """Raise TypeError unless a private function of Ray takes just these parameters: other releases stay unpatched."""
    found = tuple(inspect.signature(function).parameters)
    if found != names:
        raise TypeError(f"{function.__qualname__} takes {', '.join(found)}")


@functools.cache
def kernel() -> str:
    """Return the boot id of the kernel: processes with the same id read the same clock. Empty if there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
