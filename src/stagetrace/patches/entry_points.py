"""Patches that distributions bring, as entry points of the group `stagetrace.patches`; `stagetrace_contrib` is one.

    [project.entry-points."stagetrace.patches"]
    "pinewood.model" = "pinewood_stagetrace:patch_model"
    oakserve = "oakserve_stagetrace.registry"

The first form names a module that is patched, and its `Patch` (`instrumentation/base.py`). The second names a table: a
module with `PATCHES`, a mapping of such lines, in a package that consists of patches. What of these wraps the handler
of a request is in its `ENTRY_PATCHES`, too, if there is any: there the work of a request begins on a thread's stack.
"""

from __future__ import annotations

import os
import sys

from stagetrace.import_hooks import finder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GROUP = "stagetrace.patches"
OWN = "stagetrace"  # our own distribution
_SECTION = f"[{GROUP}]".encode()


def found(known: Mapping[str, str]) -> dict[str, str]:
    """Return the patches by module; those of modules that are `known` are logged, and not done. Never raises.

    The files are read here: to load `importlib.metadata` takes longer than all else at start.
    """
    patches: dict[str, str] = {}
    for path in _files():
        _read(path, patches, known)
    return patches


def _read(path: str, patches: dict[str, str], known: Mapping[str, str]) -> None:
    try:
        for name, value in _entries(path):
            _add(patches, known, {name: value} if ":" in value else _table(value))
    except Exception as error:  # noqa: BLE001 -- as `guarded`, which would be loaded in each process
        from stagetrace.guard import report

        report(__name__, error)


def _add(patches: dict[str, str], known: Mapping[str, str], more: Mapping[str, str]) -> None:
    for name, patch in more.items():
        other = known.get(name) or patches.get(name)
        if other:
            from stagetrace import log

            log.once(f"{GROUP}:{patch}", f"{patch} is to patch {name}, which {other} does: it is not used.")
        else:
            patches[name] = patch


def _table(name: str) -> Mapping[str, str]:
    """Return the patches of a table; note which code is that of patches, and which of it begins requests."""
    table = __import__(name, fromlist=["PATCHES"])
    package, folder = name.rpartition(".")[0] + ".", str(table.__file__).rpartition(os.sep)[0] + os.sep
    if folder not in finder.folders:
        finder.folders += (folder,)
        entries = {patch.partition(":")[0] for patch in getattr(table, "ENTRY_PATCHES", {}).values()}
        files = sorted({one.removeprefix(package).partition(".")[0] for one in entries})
        finder.entries += tuple(f"{folder}{file}{end}" for file in files for end in (".py", os.sep))
    patches: Mapping[str, str] = table.PATCHES
    return patches


def _files() -> list[str]:
    """Return where distributions on the path may have their entry points: ours first, of each the one that is used."""
    files: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 -- pathlib is not loaded yet
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                distribution = name.rpartition(".")[0].partition("-")[0].lower()
                files.setdefault(distribution, os.path.join(folder, name, "entry_points.txt"))  # noqa: PTH118
    own = files.pop(OWN, None)
    return [*filter(None, [own]), *files.values()]


def _entries(path: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the group in a file of entry points."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            content = file.read()
    except OSError:
        return
    if _SECTION in content:
        for line in content.partition(_SECTION)[2].partition(b"\n[")[0].decode().splitlines():
            name, is_entry, value = line.partition("=")
            if is_entry and not line.startswith(("#", ";")):
                yield name.strip(), value.partition("[")[0].strip()
