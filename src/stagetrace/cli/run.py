"""`stagetrace run -- CMD`: start a command with recording on, where the activation file is not read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stagetrace import config
from stagetrace.errors import StagetraceError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Start COMMAND with STAGETRACE=1 and make every Python process under it activate.

Needed only where Python reads no .pth file of this package: a `pip install --target` folder, a zipped or
vendored install. Elsewhere the variable alone does the same."""
EXAMPLE = 'STAGETRACE_SLA="POST /predict within 50ms" stagetrace run -- uvicorn app:app'


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    import argparse

    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Replace this process by the command.

    Raises:
        StagetraceError: if there is no command, or none of that name.
    """
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise StagetraceError(f"run what? Nothing follows `--`.\nFor example: {EXAMPLE}")
    program = shutil.which(command[0])
    if program is None:
        raise StagetraceError(
            f"cannot run {command[0]!r}: there is no such program on PATH.\nCheck the name, or give its path."
        )
    os.execve(program, command, environment())  # noqa: S606 -- what the user asked for


def environment() -> dict[str, str]:
    """Return this process's environment with recording on and our start-up folder first."""
    package = Path(__file__).resolve().parent.parent
    paths = [str(package / "_site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    switched = {} if config.enabled() else {"STAGETRACE": "1"}
    return {**os.environ, **switched, "PYTHONPATH": os.pathsep.join(paths)}
