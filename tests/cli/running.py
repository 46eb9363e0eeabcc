"""Run commands: in this process, or in one of their own where that makes a difference."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timezone
from typing import Any
from unittest.mock import patch

from stagetrace.cli.main import main

COMMAND = [sys.executable, "-m", "stagetrace.cli.main"]


def environment(**changes: str) -> dict[str, str]:
    """Return this environment without what would steer the command, plus `changes`."""
    # The tester's own local store is not what is meant where no store is named.
    changes = {"XDG_DATA_HOME": "/nowhere", **changes}
    unwanted = ("STAGETRACE", "OTEL_", "COLUMNS", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "GRPC_VERBOSITY")
    return {key: value for key, value in os.environ.items() if not key.startswith(unwanted)} | changes


def process(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process, its output in pipes."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**{"PYTHONIOENCODING": "utf-8", **changes}),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def cli(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which takes a tenth of the time; what it returns is as `process` returns it."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    with patch.dict(os.environ, environment(**changes), clear=True), redirect_stdout(output), redirect_stderr(errors):
        code = main(arguments)
    texts = []
    for stream in (output, errors):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(arguments, code, *texts)


def printed(*arguments: object, code: int = 0, **changes: str) -> str:
    """Return what a command prints that has nothing to say on stderr."""
    done = cli(*map(str, arguments), **changes)
    assert (done.returncode, done.stderr) == (code, ""), (arguments, done)
    return done.stdout


def answered(*arguments: object, code: int | None = 0, **changes: str) -> Any:
    """Return the object that `--json` prints on its line; only what makes it incomplete is said on stderr, too."""
    done = cli(*map(str, arguments), "--json", **changes)
    assert code in (None, done.returncode), (arguments, done)
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (done.stderr == "") == found["complete"], (arguments, done)
    return found


def refused(*arguments: object, **changes: str) -> str:
    """Return what a command says that gives no answer."""
    return refusal(cli(*map(str, arguments), **changes))


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Check that a command gave no answer, and said why in up to three lines; return these."""
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("stagetrace: "), done
    assert 1 <= len(done.stderr.splitlines()) <= 3, done
    assert "Traceback" not in done.stderr
    return done.stderr


def time_of(ns: int) -> str:
    """Return a time as `--since` takes it, to the nanosecond."""
    return f"{datetime.fromtimestamp(ns // 10**9, timezone.utc):%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"
