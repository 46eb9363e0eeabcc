"""Make environments with uv outside the tree, with this checkout installed in them as a user would install it.

Each checkout has environments of its own; uv has the packages in its cache, so only the first one downloads them.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import tomllib  # type: ignore[import-not-found]  # there from 3.11 on, which the tests need

from backends import CACHE
from missing import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parent.parent


def interpreter_with(requirements: Iterable[str], resolution: str = "highest") -> str:
    """Return the interpreter of an environment with the versions to which uv resolves these and our own today."""
    which = ("--python", sys.executable)
    given = "\n".join([*requirements, *own_dependencies()])
    resolved = uv("pip", "compile", "-", "--no-annotate", "--resolution", resolution, *which, given=given)
    return _made("versions", resolved)


@cache
def interpreter_once(name: str, requirements: tuple[str, ...]) -> str:
    """Return the interpreter of an environment with these requirements; once it exists, no network is needed."""
    return _made(name, "\n".join(requirements), *own_dependencies())


def own_dependencies() -> list[str]:
    """Return what stagetrace itself needs, as pyproject.toml has it."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


@cache
def folder_with(*requirements: str) -> Path:
    """Return a folder, for PYTHONPATH, with these requirements and their dependencies."""

    def make(folder: Path) -> None:
        uv("pip", "install", "--python", sys.executable, "--target", str(folder), *requirements)

    return once("folder", [sys.version, *requirements], make)


def _made(name: str, requirements: str, *more: str) -> str:
    """Return the interpreter of the environment with these requirements; make it if it does not exist."""

    def make(folder: Path) -> None:
        (folder / "versions.txt").write_text(requirements)
        uv("venv", "--allow-existing", "--python", sys.executable, str(folder))
        # Not compiled: that takes half a minute of a core, and a test imports a small part.
        requirements_file = ("--requirements", str(folder / "versions.txt"))
        uv("pip", "install", "--python", str(folder), *requirements_file, "--editable", str(ROOT))

    # What is copied at an installation.
    copied = [path.read_text() for path in sorted((ROOT / "src").glob("stagetrace.*"))]
    pyproject = (ROOT / "pyproject.toml").read_text()
    copied += re.findall(r"^\[project\.entry-points.*?(?=^\[)", pyproject, re.DOTALL | re.MULTILINE)
    return str(once(name, [str(ROOT), sys.version, requirements, *more, *copied], make) / "bin" / "python")


def once(name: str, inputs: list[str], make: Callable[[Path], None]) -> Path:
    """Return the folder of the cache for these inputs; make it if it does not exist."""
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]
    folder = CACHE / f"{name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            make(folder)
            (folder / "ready").touch()
    return folder


def uv(*arguments: str, given: str = "") -> str:
    """Run uv and return what it prints; skip where it fails, under CI fail."""
    argv = [sys.executable, "-m", "uv", *arguments, "--quiet"]
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"uv {arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout
