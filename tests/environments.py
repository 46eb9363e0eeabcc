"""Make environments with uv outside the tree, with this checkout installed in them as a user would install it.

Each checkout has environments of its own; uv has the packages in its cache, so only the first one downloads them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from missing import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parent.parent


def interpreter_with(requirements: Iterable[str], resolution: str = "highest") -> str:
    """Return the interpreter of an environment with the versions to which uv resolves these requirements today."""
    which = ("--python", sys.executable)
    given = "\n".join(requirements)
    resolved = _uv("pip", "compile", "-", "--no-annotate", "--resolution", resolution, *which, given=given)
    return _made("versions", resolved)


@cache
def interpreter_once(name: str, requirements: tuple[str, ...]) -> str:
    """Return the interpreter of an environment with these requirements; once it exists, no network is needed."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    (own,) = re.findall(r"^dependencies = \[(.*?)^\]", pyproject, re.DOTALL | re.MULTILINE)
    return _made(name, "\n".join(requirements), own)


@cache
def interpreter_of(version: str, requirements: tuple[str, ...]) -> str:
    """Return the interpreter of an environment of this version of Python ("3.10"), in which stagetrace is installed.

    It is installed from a copy: an editable installation would replace the extension of this one.
    """
    python = _interpreter(version)

    def make(folder: Path) -> None:
        _uv("venv", "--allow-existing", "--python", python, str(folder))
        with tempfile.TemporaryDirectory() as copied:
            for name in _installed():
                (Path(copied) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(copied) / name)
            _uv("pip", "install", "--python", str(folder), *requirements, copied)

    source = [(ROOT / name).read_text(errors="replace") for name in _installed()]
    return str(_once(f"python{version}", [python, *requirements, *source], make) / "bin" / "python")


def _installed() -> list[str]:
    """Return the files of this checkout from which a wheel is built, those included that git does not know yet."""
    parts = "pyproject.toml setup.py MANIFEST.in README.md CHANGELOG.md SECURITY.md LICENSE NOTICE"
    listed = (
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        *parts.split(),
        "src",
        "native",
        "examples",
    )
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in sorted(names) if (ROOT / name).is_file()]


def _interpreter(version: str) -> str:
    """Return this Python from the PATH or from pyenv, whose shims on the PATH are for the chosen versions alone."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")))]
    for python in filter(None, found):
        if not subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
            return python
    return missing(f"Python {version} is neither on the PATH nor in {pyenv}")


@cache
def folder_with(*requirements: str) -> Path:
    """Return a folder, for PYTHONPATH, with these requirements and their dependencies."""

    def make(folder: Path) -> None:
        _uv("pip", "install", "--python", sys.executable, "--target", str(folder), *requirements)

    return _once("folder", [sys.version, *requirements], make)


def _made(name: str, requirements: str, *more: str) -> str:
    """Return the interpreter of the environment with these requirements; make it if it does not exist."""

    def make(folder: Path) -> None:
        (folder / "versions.txt").write_text(requirements)
        _uv("venv", "--allow-existing", "--python", sys.executable, str(folder))
        # Not compiled: that takes half a minute of a core, and a test imports a small part.
        requirements_file = ("--requirements", str(folder / "versions.txt"))
        _uv("pip", "install", "--python", str(folder), *requirements_file, "--editable", str(ROOT))

    # What is copied at an installation.
    copied = [path.read_text() for path in sorted((ROOT / "src").glob("stagetrace.*"))]
    pyproject = (ROOT / "pyproject.toml").read_text()
    copied += re.findall(r"^\[project\.entry-points.*?(?=^\[)", pyproject, re.DOTALL | re.MULTILINE)
    return str(_once(name, [str(ROOT), sys.version, requirements, *more, *copied], make) / "bin" / "python")


def _once(name: str, inputs: list[str], make: Callable[[Path], None]) -> Path:
    """Return the folder of the cache for these inputs; make it if it does not exist."""
    base = os.environ.get("STAGETRACE_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]
    folder = Path(base) / "stagetrace" / f"{name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            make(folder)
            (folder / "ready").touch()
    return folder


def _uv(*arguments: str, given: str = "") -> str:
    argv = [sys.executable, "-m", "uv", *arguments, "--quiet"]
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"uv {arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout
