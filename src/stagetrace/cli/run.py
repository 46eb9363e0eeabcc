"""`stagetrace run -- CMD`: start a command with recording on, where the activation file is not read."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

from stagetrace import settings
from stagetrace.cli.registry import Option
from stagetrace.errors import StagetraceError

DESCRIPTION = """Start COMMAND with STAGETRACE=1 and make every Python process under it activate.

Needed only where Python reads no .pth file of this package: a `pip install --target` folder, a zipped or
vendored install. Elsewhere the variable alone does the same. Python with -S reads neither that file nor what
this adds, and is refused; with -E or -I it reads the file alone."""
PYTHON = re.compile(r"(python|pypy)[\d.]*[dt]*(\.exe)?", re.IGNORECASE)
# Options of Python's in one word: letters alone, then one that what follows belongs to, and that.
WORDS = re.compile(r"-(?!-|$)([^cmWX]*)([cmWX]?)(.*)", re.DOTALL)
EXAMPLE = 'STAGETRACE_SLA="POST /predict within 50ms" stagetrace run -- uvicorn app:app'

OPTIONS = (Option("-- COMMAND", "the command and its arguments", many=argparse.REMAINDER, key="command"),)


def run(arguments: argparse.Namespace) -> int:
    """Replace this process by the command.

    Raises:
        StagetraceError: if there is no command, none of that name, or one in which nothing could be recorded.
    """
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise StagetraceError(f"run what? Nothing follows `--`.\nFor example: {EXAMPLE}")
    program = shutil.which(command[0])
    if program is None:
        raise StagetraceError(
            f"cannot run {command[0]!r}: there is no such program on PATH.\nCheck the name, or give its path."
        )
    if _is_without_site(command):
        raise StagetraceError(
            f"cannot record {command[0]} -S: by that option Python runs neither .pth files nor sitecustomize,"
            " by one of which recording starts.\n"
            "Leave -S out, or let the program itself begin with:"
            " import stagetrace.activate; stagetrace.activate.from_environment()"
        )
    os.execve(program, command, environment())  # noqa: S606 -- what the user asked for


def environment() -> dict[str, str]:
    """Return this process's environment with recording on and our start-up folder first."""
    package = Path(__file__).resolve().parent.parent
    paths = [str(package / "_site"), *filter(None, [settings.PYTHONPATH.read()])]
    switched = {} if settings.SWITCH.read() else {"STAGETRACE": "1"}
    return {**os.environ, **switched, "PYTHONPATH": os.pathsep.join(paths)}


def _is_without_site(command: list[str]) -> bool:
    """Return whether a command starts Python with -S, by itself or among other letters (`-uS`, `-Sm module`)."""
    if not PYTHON.fullmatch(os.path.basename(command[0])):  # noqa: PTH119 -- a word, maybe no path
        return False
    words = iter(command[1:])
    for word in words:
        if word == "--check-hash-based-pycs":
            next(words, None)
            continue
        options = WORDS.fullmatch(word)
        if options is None:  # the program, or what ends the options
            return False
        letters, takes, value = options.groups()
        if "S" in letters:
            return True
        if takes in ("c", "m"):  # the program
            return False
        if takes and not value:
            next(words, None)
    return False
