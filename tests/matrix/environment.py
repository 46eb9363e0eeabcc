"""The environment of a cell: its packages first, then stagetrace without dependencies."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from environments import ROOT, once, uv
from matrix.pythons import interpreter

if TYPE_CHECKING:
    from matrix.cells import Cell

# Later releases are not seen, and mirrors have those of a week before: the table of docs/compatibility.md changes by a
# change of this line alone.
AS_OF = "2026-11-23"


@dataclass(frozen=True)
class Environment:
    """An environment with stagetrace in it."""

    folder: Path
    before: dict[str, str]  # packages and versions, before stagetrace was installed
    after: dict[str, str]

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")


@cache
def environment(cell: Cell) -> Environment:
    """Return the environment of a cell; made where it is missing, with this checkout's stagetrace."""
    python = interpreter(cell.python)
    requirements = cell.requirements

    def make(folder: Path) -> None:
        uv("venv", "--allow-existing", "--python", python, str(folder))
        if requirements:
            uv("pip", "install", "--exclude-newer", AS_OF, "--python", str(folder), *requirements)
        (folder / "packages.txt").write_text(uv("pip", "freeze", "--python", str(folder)))

    folder = once("cell", [str(ROOT), python, AS_OF, *requirements], make)
    built = wheel("3.13t" if cell.is_free_threaded else "3.11")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        noted = folder / "stagetrace.txt"
        if not noted.exists() or noted.read_text() != str(built):
            uv("pip", "install", "--no-deps", "--reinstall", "--python", str(folder), str(built))
            noted.write_text(str(built))
        after = uv("pip", "freeze", "--python", str(folder))
    return Environment(folder, _versions((folder / "packages.txt").read_text()), _versions(after))


def _versions(frozen: str) -> dict[str, str]:
    pairs = (line.replace(" @ ", "==").partition("==")[::2] for line in frozen.splitlines())
    return {name.lower(): version for name, version in pairs}


@cache
def wheel(version: str) -> Path:
    """Return a wheel of this checkout, made by this Python: one of 3.11 serves all that have the stable ABI."""

    def make(folder: Path) -> None:
        # From a copy, in which no extension of another build lies.
        with tempfile.TemporaryDirectory() as copied:
            for name in sources:
                (Path(copied) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(copied) / name)
            uv("build", "--wheel", "--python", interpreter(version), "--out-dir", str(folder), copied)

    sources = _installed()
    contents = [hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in sources]
    (built,) = once("wheel", [interpreter(version), *sources, *contents], make).glob("*.whl")
    return built


def _installed() -> list[str]:
    """Return the files of this checkout from which a wheel is built, those included that git does not know yet."""
    parts = "pyproject.toml setup.py MANIFEST.in README.md CHANGELOG.md SECURITY.md LICENSE NOTICE src native examples"
    listed = ("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *parts.split())
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in sorted(names) if (ROOT / name).is_file()]
