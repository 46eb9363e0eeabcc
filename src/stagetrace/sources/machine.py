"""Host pressure: what the machine (PSI) and the container (CPU quota of the cgroup) withhold from this process.

Both count up since boot. A `Meter` keeps values of some seconds ago and reports the rise of the last few seconds. It is
read every few seconds, and when a request was too slow; not for each request.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace import settings
from stagetrace.sources.base import Source
from stagetrace.system.threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_NS: Final = 5_000_000_000  # the kernel adds up pressure in steps of up to two seconds
NEW_NS: Final = 100_000_000  # within this time breaches share a reading, however many they are
LONGEST_NS: Final = 30_000_000_000
PRESSURE: Final = Path("/proc/pressure/cpu")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")
MOUNTS: Final = Path("/proc/self/mountinfo")


class Rise(NamedTuple):
    """By how much a counter rose, and within which time in nanoseconds."""

    by: int
    within: int


class Meter:
    """A counter that is read every few seconds while requests come, so that its recent rise is known."""

    def __init__(self, source: Source, count: Callable[[], int]) -> None:
        self._source = source
        self._count = count
        self._lock = allocate_lock()  # guards _marks
        self._marks: deque[tuple[int, int]] = deque(maxlen=2)  # when it was read, and what it was then
        self._rise: Rise | None = None  # the latest one, and when that was
        self._risen_at = 0

    def tick(self) -> None:
        """Read the counter, if the last reading is older than EVERY_NS."""
        now = time.monotonic_ns()
        marks = self._marks
        if marks and now - marks[-1][0] < EVERY_NS:
            return
        count = self._source.read(self._count)
        if count is not None:
            with self._lock:
                marks.append((now, count))

    def rise(self) -> Rise | None:
        """Return the rise within the last LONGEST_NS at most; None where it was not read so recently, or cannot be."""
        if time.monotonic_ns() - self._risen_at < NEW_NS:
            return self._rise
        count, now = self._source.read(self._count), time.monotonic_ns()
        if count is None:
            return None
        with self._lock:
            since = next((mark for mark in self._marks if now - mark[0] <= LONGEST_NS), None)
        self._rise = None if since is None else Rise(max(count - since[1], 0), now - since[0])
        self._risen_at = now
        return self._rise


def pressure_ns() -> int:
    """Return for how long since boot some process of this machine (or container) has waited for a CPU."""
    for word in PRESSURE.read_text().splitlines()[0].split():
        name, _, value = word.partition("=")
        if name == "total":
            return int(value) * 1_000
    raise ValueError(f"{PRESSURE} has no total")


def throttled_ns() -> int:
    """Return for how long this process's cgroup has been held at its quota."""
    path = _statistics()
    if path is None:
        raise FileNotFoundError("no cgroup with a quota")
    found = dict(line.split() for line in path.read_text().splitlines())
    if "throttled_usec" in found:  # version 2
        return int(found["throttled_usec"]) * 1_000
    return int(found["throttled_time"])


@functools.cache
def _statistics() -> Path | None:
    """Return the `cpu.stat` of this process's cgroup, of version 1 or 2, that counts throttling."""
    own = dict(_of_controllers(OWN_CGROUPS.read_text()))
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        root, point = before.split()[3:5]
        is_v1 = kind == "cgroup" and "cpu" in options.split(",")
        group = own.get("cpu") if is_v1 else own.get("") if kind == "cgroup2" else None
        if group is None:
            continue
        inside = group[len(root) :] if root != "/" and group.startswith(root) else group
        for path in (Path(point, inside.strip("/"), "cpu.stat"), Path(point, "cpu.stat")):  # the second: in a container
            if path.is_file() and "throttled_" in path.read_text():
                return path
    return None


def _of_controllers(text: str) -> list[tuple[str, str]]:
    """Return (controller, group) for each line of /proc/self/cgroup; version 2 has the controller ''."""
    return [
        (controller, group)
        for _, controllers, group in (line.split(":", 2) for line in text.splitlines() if line.count(":") > 1)
        for controller in controllers.split(",")
    ]


def _lacks_pressure() -> str | None:
    return None if pressure_ns() >= 0 else "no pressure"


def _lacks_quota() -> str | None:
    return None if _statistics() is not None else "no cgroup that counts throttling"


PRESSURE_SOURCE = Source(f"{__name__}.pressure", "the pressure on the CPUs", settings.PRESSURE, _lacks_pressure)
QUOTA_SOURCE = Source(f"{__name__}.quota", "the throttling by a CPU quota", settings.THROTTLING, _lacks_quota)
pressure = Meter(PRESSURE_SOURCE, pressure_ns)
quota = Meter(QUOTA_SOURCE, throttled_ns)
