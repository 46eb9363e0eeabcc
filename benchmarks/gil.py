"""Measure from outside how long threads hold the interpreter (the GIL) at a stretch.

`perf` sets probes where CPython takes and releases the GIL. Each probe costs about a microsecond, so such a run
measures nothing else. It needs Linux, `perf`, the right to set probes (root), and a CPython with symbols.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

GROUP = "stagetrace_gil"
TAKEN, GIVEN = "taken__return", "given"  # as perf names them
PROBES = ("taken=take_gil%return", "given=drop_gil")
_EVENT = re.compile(rf"\s*(\d+)\s+([\d.]+):\s+{GROUP}:({TAKEN}|{GIVEN}):")


@contextmanager
def probes() -> Iterator[str]:
    """Set the probes while the block runs; yield the reason if that fails, else an empty string."""
    try:
        yield _set()
    finally:
        _remove()


def _set() -> str:
    library = _interpreter()
    for probe in PROBES:
        try:
            done = subprocess.run(
                ["perf", "probe", "--quiet", "-x", str(library), f"{GROUP}:{probe}"],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            return f"no perf here: {error}"
        if done.returncode:
            return f"perf sets no probe in {library}: {(done.stderr.strip() or 'it does not say why').splitlines()[0]}"
    return ""


def _remove() -> None:
    try:
        subprocess.run(["perf", "probe", "--quiet", "--del", f"{GROUP}:*"], capture_output=True, check=False)
    except OSError:
        return  # then it has set none


def _interpreter() -> Path:
    """Return the file with the interpreter's code: a shared library, or the executable itself."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if " r-xp " in line}
    shared = [Path(name) for name in mapped if Path(name).name.startswith("libpython")]
    return shared[0] if shared else Path(sys.executable).resolve()


def recording(file: Path) -> tuple[str, ...]:
    """Return the command prefix that records in a file when the GIL is taken and released."""
    options = ("--quiet", "--mmap-pages", "1024", "--clockid", "CLOCK_MONOTONIC", "--output", str(file))
    return ("perf", "record", *options, "--event", f"{GROUP}:{TAKEN},{GROUP}:{GIVEN}", "--")


def holds_us(file: Path, threads: Collection[int], since_s: float, until_s: float) -> list[float]:
    """Return in microseconds how long these threads held the interpreter each time, between two monotonic times.

    Return NaN alone if perf never saw them take it.
    """
    shown = subprocess.run(
        ["perf", "script", "--ns", "--input", str(file), "--fields", "tid,time,event"],
        capture_output=True,
        text=True,
        check=True,
    )
    taken: dict[int, float] = {}
    held = []
    for line in shown.stdout.splitlines():
        found = _EVENT.match(line)
        if found is None:
            continue
        thread, at, what = int(found[1]), float(found[2]), found[3]
        if thread not in threads or not since_s <= at <= until_s:
            continue
        if what == TAKEN:
            taken[thread] = at
        elif thread in taken:
            held.append((at - taken.pop(thread)) * 1e6)
    return held or [float("nan")]
