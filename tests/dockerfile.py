"""Execute a Dockerfile without Docker: each stage is a folder with a virtual environment of its own.

COPY copies the files that .dockerignore admits, and no others exist. RUN lines run in the stage's folder, except those
that change the system. uv does `pip install`, from its cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Commands for an image that this machine, on which they run, does not need.
OF_THE_SYSTEM = ("apt-get", "useradd")
PIP = """#!/bin/sh
case "$1" in
install) shift; exec {python} -m uv pip install --quiet --python {venv} $(echo " $* " | sed 's/ --no-cache-dir / /g');;
*) exec {venv}/bin/python -m pip "$@";;
esac
"""


@dataclass
class Stage:
    """One build stage: the folder that represents its `/`, its environment, and its start command."""

    root: Path
    venv: Path
    workdir: Path = Path("/")
    command: list[str] = field(default_factory=list)
    has_compiler: bool = False  # whether it was installed: this machine has one anyway

    @property
    def folder(self) -> Path:
        """The folder of WORKDIR."""
        return self.at(self.workdir)

    def at(self, path: Path | str) -> Path:
        """Return the location of a path of the image."""
        return self.root / (self.workdir / path).relative_to("/")

    def environment(self) -> dict[str, str]:
        """Return the environment of its programs: of this process's only how to reach a package index."""
        passed = ("PIP_", "UV_", "SSL_", "HTTP", "http", "NO_PROXY", "no_proxy", "REQUESTS_")
        kept = {name: value for name, value in os.environ.items() if name.startswith((*passed, "HOME", "XDG_CACHE"))}
        path = f"{self.venv}-tools:{self.venv / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return {**kept, "PATH": path, "CC": "cc" if self.has_compiler else "false"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile with their arguments."""
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        yield name, rest.strip()


def replay(dockerfile: Path, context: Path, into: Path) -> Stage:
    """Execute a Dockerfile in folders below `into`; return its last stage."""
    lets_through = _patterns(dockerfile.with_name(f"{dockerfile.name}.dockerignore"))
    stages: dict[str, Stage] = {}
    stage = None
    for name, rest in instructions(dockerfile.read_text()):
        if name == "FROM":
            stage = stages[rest.partition(" AS ")[2] or str(len(stages))] = _begin(into / str(len(stages)))
            continue
        assert stage is not None, "FROM comes first"
        if name == "WORKDIR":
            stage.workdir /= rest
            stage.folder.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            words = rest.split()
            source = re.fullmatch(r"--from=(\S+)", words[0])
            if source:
                _copy(stages[source[1]].root, [word.lstrip("/") for word in words[1:-1]], stage.at(words[-1]), [])
            else:
                _copy(context, words[:-1], stage.at(words[-1]), lets_through)
        elif name == "RUN":
            _run(stage, rest)
        elif name == "CMD":
            stage.command = json.loads(rest)
        else:
            assert name in ("USER", "EXPOSE"), f"unknown to this replay: {name}"
    assert stage is not None
    return stage


def _begin(folder: Path) -> Stage:
    stage = Stage(folder / "root", folder / "venv")
    stage.root.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "uv", "venv", "--quiet", "--seed", "--python", sys.executable, stage.venv], check=True
    )
    tools = Path(f"{stage.venv}-tools")
    tools.mkdir()
    (tools / "pip").write_text(PIP.format(python=sys.executable, venv=stage.venv))
    (tools / "pip").chmod(0o755)
    return stage


def _run(stage: Stage, line: str) -> None:
    if line.partition(" ")[0] in OF_THE_SYSTEM:
        stage.has_compiler |= " gcc" in line
        return
    assert not re.search(r"(?:^|[\s=])/", line), f"would leave the stage's folder: {line}"
    argv = ["sh", "-ec", line]
    done = subprocess.run(argv, cwd=stage.folder, env=stage.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"RUN {line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _copy(base: Path, sources: list[str], target: Path, patterns: list[tuple[re.Pattern[str], bool]]) -> None:
    into = len(sources) > 1 or str(target).endswith("/") or target.is_dir()
    for source in sources:
        whole = base / source
        files = [whole] if whole.is_file() else [path for path in sorted(whole.rglob("*")) if path.is_file()]
        copied = [path for path in files if _let_through(path.relative_to(base).as_posix(), patterns)]
        assert copied, f"COPY {source}: it is not there, or .dockerignore keeps it out"
        for path in copied:
            to = target / path.name if whole.is_file() and into else target / path.relative_to(whole)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)


def _patterns(ignore: Path) -> list[tuple[re.Pattern[str], bool]]:
    """Return the lines of a .dockerignore: the paths that each matches, and whether it admits them."""
    lines = [line.strip() for line in ignore.read_text().splitlines()] if ignore.exists() else []
    return [(_regex(line.lstrip("!")), line.startswith("!")) for line in lines if line and not line.startswith("#")]


def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*)", pattern)
    return re.compile("".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts))


def _let_through(path: str, patterns: list[tuple[re.Pattern[str], bool]]) -> bool:
    """Return whether a file is sent to the build: the last line that matches it, or a folder of it, decides."""
    names = path.split("/")
    prefixes = ["/".join(names[: end + 1]) for end in range(len(names))]
    through = True
    for pattern, lets in patterns:
        if any(pattern.fullmatch(prefix) for prefix in prefixes):
            through = lets
    return through
