"""Make the folders of the agent's image from wheels of this package: `build.py FOLDER GLIBC_WHEEL MUSL_WHEEL`.

FOLDER gets `autoinstrumentation` and `autoinstrumentation-musl`, as the OpenTelemetry Operator copies them into a pod:
what records, for any Python from 3.10 on, without the commands and the back end, and without a package of others.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

# What only reads spans.
READING: Final = (
    *("analysis", "backend", "cli", "load", "output", "page", "rules", "store"),
    *("_demo", "_site", "columns.py"),
)
NAMES: Final = ("autoinstrumentation", "autoinstrumentation-musl")
SITE: Final = "opentelemetry/instrumentation/auto_instrumentation"  # no package: it has no __init__.py
PYTHONS: Final = ("3.10", "3.11", "3.12", "3.13", "3.14")


def build(folder: Path, wheel: Path) -> None:
    """Make one of the folders."""
    packages, site = folder / "packages", folder / SITE
    site.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("sitecustomize.py"), site)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for name in READING:
        path = packages / "stagetrace" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in ("stagetrace.pth", "stagetrace.start"):  # which nobody reads there
        (packages / name).unlink()


def compile_for(python: str, folder: Path) -> None:
    """Compile what is in a folder, for a pod cannot keep what its services compile: each worker would do it again.

    A copy has other times than the original, so they do not count.
    """
    subprocess.run([python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(folder)], check=True)


def found(version: str) -> str | None:
    """Return the interpreter of a version of Python, of pyenv or on the PATH; None where this machine has none."""
    own = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(own[-1]) if own else shutil.which(f"python{version}")


def main() -> None:
    """Make the folders, and say for which versions of Python they are compiled."""
    folder, *wheels = map(Path, sys.argv[1:])
    shutil.rmtree(folder, ignore_errors=True)
    for name, wheel in zip(NAMES, wheels, strict=True):
        build(folder / name, wheel)
    compiled = {version: python for version in PYTHONS if (python := found(version)) is not None}
    for python in compiled.values():
        compile_for(python, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    each = size / len(wheels) / 1e6
    print(f"{folder}: {each:.1f} MB each, compiled for Python {', '.join(compiled) or 'none: each start will'}")  # noqa: T201


if __name__ == "__main__":
    main()
