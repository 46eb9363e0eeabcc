"""Environments that uv makes outside the tree, with this checkout installed in them as a person would install it.

Each checkout has environments of its own; uv takes the packages from its cache, so only the first one downloads them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from missing import missing

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent


def interpreter_with(requirements: Iterable[str], resolution: str = "highest") -> str:
    """Return the interpreter of an environment with what these requirements resolve to today, which uv looks up."""
    which = ("--python", sys.executable)
    given = "\n".join(requirements)
    resolved = _uv("pip", "compile", "-", "--no-annotate", "--resolution", resolution, *which, given=given)
    return _made("versions", resolved)


@cache
def interpreter_once(name: str, requirements: tuple[str, ...]) -> str:
    """Return the interpreter of an environment with these requirements; once it is there, no network is needed."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    (own,) = re.findall(r"^dependencies = \[(.*?)^\]", pyproject, re.DOTALL | re.MULTILINE)
    return _made(name, "\n".join(requirements), own)


def _made(name: str, requirements: str, *more: str) -> str:
    """Return the interpreter of the environment with these requirements, which is made if it is not there."""
    base = os.environ.get("STAGETRACE_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    copied = [path.read_text() for path in sorted((ROOT / "src").glob("stagetrace.*"))]  # at its installation
    inputs = "\n".join([str(ROOT), sys.version, requirements, *more, *copied])
    folder = Path(base) / "stagetrace" / f"{name}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            (folder / "versions.txt").write_text(requirements)
            _uv("venv", "--allow-existing", "--python", sys.executable, str(folder))
            into = ("--python", str(folder), "--compile-bytecode")  # or each of several processes would compile it all
            _uv("pip", "install", *into, "--requirements", str(folder / "versions.txt"), "--editable", str(ROOT))
            (folder / "ready").touch()
    return str(folder / "bin" / "python")


def _uv(*arguments: str, given: str = "") -> str:
    argv = [sys.executable, "-m", "uv", *arguments, "--quiet"]
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"uv {arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout
