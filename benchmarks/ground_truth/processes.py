"""Run the processes of a benchmark, its services above all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measure import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent.parent
READY_WITHIN_S: Final = 60
STOP_WITHIN_S: Final = 60
BEFORE_OTHERS: Final = -15  # nice
HTTP2_SETTINGS: Final = b"\x04"  # type of the frame that such a server sends first


def start(argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process in a session of its own, with priority over other work of the machine where that is allowed.

    The kernel divides CPUs among sessions first, so those of the benchmark are equal among themselves.
    """
    process = subprocess.Popen(argv, cwd=ROOT, start_new_session=True, text=True, **options)
    with suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text(str(BEFORE_OTHERS))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, BEFORE_OTHERS)
    return process


@contextmanager
def service(
    server: Sequence[str], environment: Mapping[str, str], python: str = sys.executable, ready: str = "/health"
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Run a service until the block ends; yield its port and its processes. The last of `server` takes the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = str(port) if server[-1] == "--port" else f"127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        argv = [python, *server, where]
        process = start(argv, env={**clean_environment(), **environment}, stdout=log, stderr=log)
        try:
            if not _is_ready(process, port, ready):
                log.seek(0)
                raise SystemExit(f"{argv}: the service did not get ready:\n{log.read()[-4000:]}")
            yield port, (process.pid, *_children(process.pid))
        finally:
            process.terminate()
            _wait(process)


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:  # LitServe's workers outlive it
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_ready(process: subprocess.Popen[str], port: int, path: str) -> bool:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=READY_WITHIN_S) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
                answer = connection.recv(1024)
                if b" 200 " in answer or answer[3:4] == HTTP2_SETTINGS:
                    return True
        except OSError:
            pass
        time.sleep(0.02)
    return False


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
