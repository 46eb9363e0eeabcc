"""Build what pyproject.toml cannot say: the extension in C, and files that a wheel has in other places than the source.

setuptools runs this for `pip install`, an editable one too, and for `python -m build` (docs/decisions/048).
`python setup.py build_ext --inplace` compiles the extension again, beside the package's source.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

NAME = "stagetrace._native"
# One build for all of CPython from 3.10 on, if 3.10 or 3.11 makes it: the headers of later ones count no references to
# None, which ends an older interpreter. Free-threaded builds have no stable ABI.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
FOR_ALL = not FREE_THREADED and sys.version_info < (3, 12)
# Read by `site` at interpreter start, so they lie beside the package: activation by the environment variable alone
# (docs/decisions/001).
ACTIVATION = ("src/stagetrace.pth", "src/stagetrace.start")
DEMO = "examples/service"  # the service of `stagetrace demo`


class BuildExtension(build_ext):
    """Compiles the extension, or says in one line why this installation goes without it."""

    def build_extensions(self) -> None:
        """Compile; what lies in the source tree from an older source goes first."""
        if self.inplace or self.editable_mode:
            for old in Path("src/stagetrace").glob("_native*.so"):
                old.unlink()
        super().build_extensions()

    def build_extension(self, ext: Any) -> None:
        """Compile one extension; go on without it where that cannot be."""
        try:
            why = _why_not()
            if why is None:
                super().build_extension(ext)
        except Exception as error:  # noqa: BLE001 -- whatever a compiler and its absence raise
            why = _said(error)
        if why is not None:
            self.warn(f"stagetrace: installing without the C extension, all else is the same: {why}")


class BuildPackage(build_py):
    """Puts the activation files beside the package, and the service of the demo into it."""

    def run(self) -> None:
        """Copy them; of an editable wheel's two folders, the one that is installed."""
        super().run()
        editable = self.editable_mode
        beside = Path(self.get_finalized_command("install").install_lib if editable else self.build_lib)
        for name in ACTIVATION:
            self.copy_file(name, str(beside / Path(name).name), preserve_mode=False)
        if not editable:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(DEMO, beside / "stagetrace" / "_demo", ignore=ignored, dirs_exist_ok=True)


class Wheel(bdist_wheel):
    """Is for any platform where there is no extension."""

    def run(self) -> None:
        """Build the extension first, since what comes of that decides where the wheel's parts go."""
        self.run_command("build")
        self.skip_build = True  # it would compile once more
        built = Path(self.get_finalized_command("build").build_lib, "stagetrace")
        if not list(built.glob("_native*")):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()


def _why_not() -> str | None:
    if os.environ.get("STAGETRACE_NATIVE", "").strip().lower() in ("0", "false"):
        return "STAGETRACE_NATIVE=0"
    if sys.implementation.name != "cpython":
        return f"it is for CPython, and this is {sys.implementation.name}"
    return None


def _said(error: BaseException) -> str:
    """Return in a line what went wrong; what a compiler itself has written to stderr stands above it."""
    while error.__cause__ or error.__context__:
        if isinstance(error, subprocess.CalledProcessError):
            break
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd[0]} failed with {error.returncode}"
    return " ".join(str(error).split())


def main() -> None:
    """Build what the command line asks for."""
    # After Python's own; the last ones win. Hidden: of a module in several files `PyInit__native` alone is to be found.
    os.environ["CFLAGS"] = f"-O2 -g0 -fvisibility=hidden {os.environ.get('CFLAGS', '')}"
    extension = Extension(
        NAME,
        sources=sorted(str(path) for path in Path("native").glob("*.c")),
        depends=sorted(str(path) for path in Path("native").glob("*.h")),
        define_macros=[] if FREE_THREADED else [("Py_LIMITED_API", "0x030A0000")],
        py_limited_api=FOR_ALL,
        libraries=["m"] if os.name == "posix" else [],
        optional=True,
    )
    with tempfile.TemporaryDirectory() as folder:  # a `build` folder in the source tree keeps what no longer is there
        setup(
            ext_modules=[extension],
            cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage, "bdist_wheel": Wheel},
            options={
                "build": {"build_base": folder},
                "egg_info": {"egg_base": folder},
                "bdist_wheel": {"py_limited_api": "cp310"} if FOR_ALL else {},
            },
        )


if __name__ == "__main__":
    main()
