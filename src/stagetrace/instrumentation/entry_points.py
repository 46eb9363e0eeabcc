"""Patches that other distributions bring, as entry points of the group `stagetrace.patches`.

    [project.entry-points."stagetrace.patches"]
    "pinewood.model" = "pinewood_stagetrace:patch_model"

The name is the module that is patched, the value a `Patch` (`instrumentation/base.py`).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GROUP = "stagetrace.patches"
_MARK = f"[{GROUP}]".encode()


def found(known: Mapping[str, str]) -> dict[str, str]:
    """Return the patches of other distributions, by module; those of modules that are `known` are logged, and not done.

    Only where a distribution has any is `importlib.metadata` loaded, which takes longer than the search. Never raises.
    """
    try:
        return _load(known) if any(_has_patches(path) for path in _files()) else {}
    except Exception as error:  # noqa: BLE001 -- as `guarded`, which would be loaded in each process
        from stagetrace.guard import report

        report(__name__, error)
        return {}


def _load(known: Mapping[str, str]) -> dict[str, str]:
    from importlib.metadata import entry_points

    from stagetrace import log

    patches: dict[str, str] = {}
    for one in entry_points(group=GROUP):
        other = known.get(one.name) or patches.get(one.name)
        if other:
            log.once(f"{GROUP}:{one.value}", f"{one.value} is to patch {one.name}, which {other} does: it is not used.")
        else:
            patches[one.name] = one.value
    return patches


def _files() -> Iterator[str]:
    """Yield where distributions on the path may have their entry points."""
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 -- pathlib is not loaded yet
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                yield os.path.join(folder, name, "entry_points.txt")  # noqa: PTH118


def _has_patches(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return _MARK in file.read()
    except OSError:
        return False
