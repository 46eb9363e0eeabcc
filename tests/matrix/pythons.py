"""The interpreters of the matrix: the machine's own, one that a Go module has as data, one built of Debian's source.

`make test-all` has them made first: a build takes longer than a test may.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from environments import once
from missing import missing

CLAIMED = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.13t")  # what docs/compatibility.md says that was run
# No registry has them: Debian lists the source of 3.14 and does not serve it, and the Go module has no such build.
NOT_TO_BE_HAD = ("3.14t",)
FOLDER = Path(__file__).parent
DEBIAN_SOURCE = "python3.13=3.13.5-2+deb13u5"  # the version of Debian 13


@cache
def interpreter(version: str) -> str:
    """Return the interpreter of a version ("3.13t" is free-threaded); skip where there is none, under CI fail."""
    found = _here(version)
    if found is not None:
        return found
    if version == "3.14":
        module = [(FOLDER / "python314" / name).read_text() for name in ("main.go", "go.sum")]
        return str(once("interpreter", [version, *module], _from_go) / "bin" / "python3.14")
    if version == "3.13t":
        return str(once("interpreter", [version, DEBIAN_SOURCE], _from_debian) / "bin" / "python3.13t")
    return missing(f"Python {version} is neither on the PATH nor in pyenv")


def _here(version: str) -> str | None:
    """Return this Python from the PATH or from pyenv, whose shims on the PATH are for the chosen versions alone."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    number, free = version.removesuffix("t"), version.endswith("t") * "t"
    of_pyenv = sorted(map(str, pyenv.glob(f"versions/{number}.*{free}/bin/python{version}")))
    for python in filter(None, [shutil.which(f"python{version}"), *of_pyenv]):
        if not subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
            return python
    return None


def _from_go(folder: Path) -> None:
    if shutil.which("go") is None:
        missing("Python 3.14 is neither on the PATH nor in pyenv; without Go it cannot be had")
    _run(["go", "run", ".", str(folder)], FOLDER / "python314")


def _from_debian(folder: Path) -> None:
    """Build it, for some minutes: without optimisation by the compiler, which takes longer than all tests."""
    if shutil.which("apt-get") is None:
        missing("a free-threaded Python is not on the PATH; without Debian's packages it cannot be had")
    source = folder / "source"
    (source / "lists").mkdir(parents=True, exist_ok=True)
    signed = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    (source / "sources.list").write_text(f"deb-src [{signed}] http://deb.debian.org/debian trixie main\n")
    settings = {
        "Dir::State": source,
        "Dir::State::lists": source / "lists",
        "Dir::Cache": source,
        "Dir::Etc::sourcelist": source / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    _run(["apt-get", *options, "-qq", "update"], source)
    _run(["apt-get", *options, "-qq", "source", "--download-only", "--tar-only", DEBIAN_SOURCE], source)
    (archive,) = source.glob("*.orig.tar.xz")
    _run(["tar", "-xf", archive.name, "--strip-components", "1"], source)
    without = ("--disable-gil", "--without-ensurepip", "--disable-test-modules", "OPT=-O1 -DNDEBUG -fwrapv")
    _run(["./configure", "-q", f"--prefix={folder}", *without], source)
    _run(["make", "-s", "-j2"], source)
    _run(["make", "-s", "altinstall"], source)
    shutil.rmtree(source)


def _run(argv: list[str], folder: Path) -> None:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"{' '.join(argv)} failed with {done.returncode}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    for one in CLAIMED:
        try:
            interpreter(one)
        except pytest.skip.Exception as why:  # noqa: PERF203
            print(f"note: {why}")  # noqa: T201 -- for the person who reads what make prints
