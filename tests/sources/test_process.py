"""What holds up all of a process: the garbage collector, page faults, a machine or a container without enough CPU."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagetrace import settings
from stagetrace.sources import gc_pauses, machine, page_faults, registry
from stagetrace.sources.base import Source

CGROUP = Path(f"/sys/fs/cgroup/cpu/stagetrace-test-{os.getpid()}")
# In a cgroup of its own it computes for longer than its quota allows.
THROTTLED = """
import sys, time
from stagetrace.sources import machine
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
machine.quota.tick()
until = time.thread_time() + 0.05
while time.thread_time() < until: pass
print(machine.quota.rise().by)
"""


def test_pauses_are_counted_where_they_were() -> None:
    gc_pauses.start()
    try:
        heap = [[number] for number in range(200_000)]
        before = time.time_ns()
        gc.collect()
        after = time.time_ns()
        time.sleep(0.001)
    finally:
        gc_pauses.stop()
    assert heap
    paused = gc_pauses.paused_ns(before, after)
    assert gc_pauses.LEAST_NS <= paused <= after - before
    assert gc_pauses.paused_ns(after, time.time_ns()) == 0
    middle = (before + after) // 2
    assert gc_pauses.paused_ns(before, middle) + gc_pauses.paused_ns(middle, after) == paused


def test_a_collection_that_is_not_over_counts_until_now() -> None:
    """Its end is noted in Python, and whoever has waited for the GIL may run before that."""
    before = time.time_ns()
    gc_pauses.record("start", {})
    begun = time.time_ns()
    after = begun + 50_000_000
    assert after - begun <= gc_pauses.paused_ns(before, after) <= after - before
    gc_pauses.record("stop", {})
    assert gc_pauses.paused_ns(before, after) <= time.time_ns() - before


def test_pauses_that_fail_are_heard_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_pauses, "recent_pauses", None)
    gc_pauses.start()
    monkeypatch.setattr(gc_pauses, "LEAST_NS", 0)
    gc.collect()
    assert gc_pauses.record not in gc.callbacks


def test_memory_that_has_to_come_from_a_disk_is_page_faults(tmp_path: Path) -> None:
    """The kernel may keep pages that it was advised to drop, so there are several files."""
    before = page_faults.count_major_faults()
    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(os.urandom(4 << 20))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                assert sum(memory[:: mmap.PAGESIZE]) > 0
        if page_faults.count_major_faults() > before:
            break
    assert page_faults.count_major_faults() > before


@pytest.mark.skipif(machine.PRESSURE_SOURCE.lacks is not None, reason=str(machine.PRESSURE_SOURCE.lacks))
def test_pressure_counts_up() -> None:
    assert machine.Meter(machine.PRESSURE_SOURCE, machine.pressure_ns).rise() is None
    machine.pressure.tick()
    rise = machine.pressure.rise()
    assert rise is not None
    assert 0 <= rise.by <= rise.within + 2_000_000_000  # the kernel adds up in steps of up to two seconds


def test_a_meter_tells_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read twice in ten seconds at most, and no rise over a time in which nobody has read it."""
    now, count, readings = [0], [0], []
    monkeypatch.setattr("stagetrace.sources.machine.time.monotonic_ns", lambda: now[0])

    def read() -> int:
        readings.append(now[0])
        return count[0]

    source = Source("stagetrace.sources.of_a_test", "a counter", settings.SOCKET_WAIT, lambda: None)
    meter = machine.Meter(source, read)
    for second in range(21):
        now[0], count[0] = second * 1_000_000_000, second
        meter.tick()
    assert len(readings) == 5
    now[0] += 1
    assert meter.rise() == (5, 5_000_000_001)
    now[0] += 28_000_000_000
    assert meter.rise() == (0, 28_000_000_001)
    now[0] += 28_000_000_000
    assert meter.rise() is None


def test_a_quota_that_is_used_up_is_throttling() -> None:
    try:
        CGROUP.mkdir()
        (CGROUP / "cpu.cfs_quota_us").write_text("5000")
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        run = [sys.executable, "-c", THROTTLED, str(CGROUP)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    finally:
        CGROUP.rmdir()
    assert int(done.stdout) > 100_000_000  # 50 ms at 5 ms in each 100


@pytest.mark.parametrize(
    ("groups", "mounts", "file", "found"),
    [
        ("4:cpu,cpuacct:/a\n", "1 2 0:3 / {0}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n", "cpu/a/cpu.stat", 7),
        ("0::/a/b\n", "1 2 0:3 / {0} rw shared:4 - cgroup2 cgroup2 rw\n", "a/b/cpu.stat", 7),
        ("0::/a/b\n", "1 2 0:3 /a/b {0} rw - cgroup2 cgroup2 rw\n", "cpu.stat", 7),
        ("0::/\n", "1 2 0:3 /../.. {0} rw - cgroup2 cgroup2 rw\n", "cpu.stat", 7),
        ("0::/\n", "1 2 0:3 / {0} rw - tmpfs tmpfs rw\n", "cpu.stat", None),
    ],
)
def test_the_cgroup_is_found(
    groups: str, mounts: str, file: str, found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of version 1 and 2, from outside and inside of a container."""
    statistics = tmp_path / file
    statistics.parent.mkdir(parents=True, exist_ok=True)
    statistics.write_text("nr_throttled 3\nthrottled_usec 7\n")
    for name, text in (("OWN_CGROUPS", groups), ("MOUNTS", mounts.format(tmp_path))):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(machine, name, tmp_path / name)
    machine._statistics.cache_clear()
    try:
        assert machine._statistics() == (statistics if found else None)
        if found:
            assert machine.throttled_ns() == found * 1_000
    finally:
        machine._statistics.cache_clear()


def test_each_source_says_whether_it_is_read() -> None:
    assert {source.title for source in registry.SOURCES} <= set(registry.states())
    assert len({source.variable for source in registry.SOURCES}) == len(registry.SOURCES)
