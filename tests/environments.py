"""Environments that uv makes, once for what each resolves to, outside the tree, with this checkout installed in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from missing import missing

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent


def interpreter_with(requirements: Iterable[str], resolution: str = "highest") -> str:
    """Return the interpreter of an environment with these requirements."""
    which = ("--python", sys.executable)
    asked = "\n".join(requirements)
    resolved = _uv("pip", "compile", "-", "--no-annotate", "--resolution", resolution, *which, given=asked)
    base = os.environ.get("STAGETRACE_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    copied = [path.read_text() for path in sorted((ROOT / "src").glob("stagetrace.*"))]  # at its installation
    inputs = "\n".join([str(ROOT), sys.version, resolved, *copied])
    folder = Path(base) / "stagetrace" / f"versions-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            (folder / "versions.txt").write_text(resolved)
            _uv("venv", "--allow-existing", *which, str(folder))
            into = ("--python", str(folder))
            _uv("pip", "install", *into, "--requirements", str(folder / "versions.txt"), "--editable", str(ROOT))
            (folder / "ready").touch()
    return str(folder / "bin" / "python")


def _uv(*arguments: str, given: str = "") -> str:
    argv = [sys.executable, "-m", "uv", *arguments, "--quiet"]
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"uv {arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout
