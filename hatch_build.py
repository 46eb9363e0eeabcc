"""Compile the package's C sources into each wheel where there is a C compiler; else the wheel is pure Python.

hatchling runs this for `pip install`, an editable one too, and for `python -m build` (docs/decisions/011).
`python hatch_build.py` compiles in place, as an editable installation does.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = Path("src")
# Each becomes the extension of that name, beside it, together with what there is: _decoder.c with decoder_walk.c ...
SOURCES = "stagetrace/**/_*.c"
# One build for all of CPython from 3.10 on, if 3.10 or 3.11 makes it: the headers of later ones count no references to
# None, which ends an older interpreter. Free-threaded builds have no stable ABI.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
STABLE_ABI = "-DPy_LIMITED_API=0x030A0000"
FOR_ALL = not FREE_THREADED and sys.version_info < (3, 12)
SUFFIX = ".abi3.so" if FOR_ALL else str(sysconfig.get_config_var("EXT_SUFFIX"))
TIMEOUT_S = 120


class NotCompiledError(Exception):
    """The extension cannot be compiled here; the message says why."""


class CompileExtensions(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the extensions to a wheel: all of them, or none."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile: for an editable wheel beside the source, else for the wheel alone, whose tag then says so."""
        packages = Path(self.root, PACKAGES)
        self._folder = tempfile.TemporaryDirectory()  # goes with this object, after the wheel is written
        editable = version == "editable"
        try:
            built = compile_all(packages, packages if editable else Path(self._folder.name))
        except NotCompiledError as error:
            if editable:
                for source in packages.glob(SOURCES):
                    source.with_suffix(SUFFIX).unlink(missing_ok=True)  # of an older source
            self.app.display_warning(f"stagetrace: installing without the C extension, all else is the same: {error}")
            return
        if editable:
            return
        python, abi, platform = self.build_config.builder.get_best_matching_tag().split("-")
        build_data["tag"] = f"cp310-abi3-{platform}" if FOR_ALL else f"{python}-{abi}-{platform}"
        build_data["pure_python"] = False
        for name, path in built.items():
            build_data["force_include"][str(path)] = name


def compile_all(packages: Path, into: Path) -> dict[str, Path]:
    """Compile each source under `packages`; return the extensions made under `into`, by their paths in a wheel.

    Raises NotCompiledError.
    """
    built = {}
    for source in sorted(packages.glob(SOURCES)):
        name = source.relative_to(packages).with_suffix(SUFFIX)
        built[name.as_posix()] = _compile(source, into / name)
    return built


def _compile(source: Path, target: Path) -> Path:
    """Compile one source and its parts; return `target`, which appears whole or not. Raises NotCompiledError."""
    if os.environ.get("STAGETRACE_NATIVE", "").strip().lower() in ("0", "false"):
        raise NotCompiledError("STAGETRACE_NATIVE=0")
    if sys.implementation.name != "cpython":
        raise NotCompiledError(f"it is for CPython, and this is {sys.implementation.name}")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "")
    if not compiler:
        raise NotCompiledError("this Python names no C compiler, and CC is not set")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    # CFLAGS of the environment come last and win: `make test-sanitizers` asks for less optimization, and symbols.
    flags = [*_words("CFLAGS"), *_words("CCSHARED"), "-O2", "-g0", *shlex.split(os.environ.get("CFLAGS", ""))]
    if not FREE_THREADED:
        flags.append(STABLE_ABI)
    includes = [f"-I{sysconfig.get_path(kind)}" for kind in ("include", "platinclude")]
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    parts = sorted(source.parent.glob(f"{source.stem[1:]}_*.c"))
    command = [*compiler, *flags, *includes, *shared, str(source), *map(str, parts), "-o", str(unfinished)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
        if done.returncode:
            said = done.stderr.splitlines() or ["it says nothing"]
            why = next((line for line in said if "error" in line), said[0]).strip()
            raise NotCompiledError(f"{compiler[0]} failed with {done.returncode}: {why}")
        unfinished.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiledError(str(error)) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _words(name: str) -> list[str]:
    return shlex.split(sysconfig.get_config_var(name) or "")


if __name__ == "__main__":
    here = Path(__file__).parent / PACKAGES
    try:
        print(*compile_all(here, here).values(), sep="\n")  # noqa: T201
    except NotCompiledError as error:
        sys.exit(f"not compiled: {error}")
