"""End all processes of a test run with it, even if pytest itself is killed.

`Watcher` starts this file as a process. It waits until pytest has ended, then kills each process that carries the run's
id in its environment, and prints the command lines of those.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "TEST_RUN_ID"
GRACE_S = 3.0  # a process that is ending anyway is not left over


class Watcher:
    """Watch one test run. Without /proc it finds nothing."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(16)
        environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._id],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.environ[VARIABLE] = self._id

    def end(self) -> list[str]:
        """Kill the remaining processes; return their command lines."""
        os.environ.pop(VARIABLE, None)
        output, _ = self._process.communicate()
        return output.splitlines()


def alive(run_id: str) -> list[int]:
    """Return the ids of the running processes of a test run."""
    mark = f"{VARIABLE}={run_id}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes() and not _is_zombie(folder):
                found.append(int(folder.name))
    return found


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def main(run_id: str) -> None:
    """Wait for the end of standard input, then kill the remaining processes."""
    sys.stdin.read()
    deadline = time.monotonic() + GRACE_S
    while (left := alive(run_id)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            os.kill(process, signal.SIGKILL)
            print(f"{process}: {command.strip()[:300]}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
