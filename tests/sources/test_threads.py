"""A thread's time is divided as it was spent: computing, waiting for a CPU, blocked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stagetrace.sources import threads
from stagetrace.sources.base import SLOW_NS
from stagetrace.sources.threads import UNKNOWN, Descriptor, Reading, between, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(threads.lacks_waiting() is not None, reason=str(threads.lacks_waiting()))
BURNER = "print(flush=True)\nwhile True: sum(range(10000))"


@contextmanager
def burners() -> Iterator[None]:
    """Keep each CPU busy with two other processes."""
    count = 2 * (os.cpu_count() or 1)
    running = [
        subprocess.Popen([sys.executable, "-c", BURNER], stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(count)
    ]
    try:
        for one in running:
            assert one.stdout is not None
            one.stdout.readline()
        yield
    finally:
        for one in running:
            one.kill()
            one.communicate()


def compute(cpu_s: float) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(500))


def cpu_ns(account: bytes | int) -> int:
    assert isinstance(account, bytes)
    return int(account.split()[0])


def share_of(work: Callable[[], None]) -> threads.Share:
    first = reading()
    work()
    share = between(first, reading())
    assert share is not None
    return share


def test_computing_among_burners_is_computing_and_waiting() -> None:
    """The parts add up to the wall time within 2 %, though the kernel counts each for itself."""
    with burners():
        share = share_of(lambda: compute(0.1))
    assert 100e6 <= share.computed <= 105e6
    assert share.waited > 20e6
    assert share.computed + share.waited <= share.wall * 1.02 + 1e6
    assert share.blocked <= share.wall * 0.02 + 1e6


def test_sleeping_is_being_blocked() -> None:
    share = share_of(lambda: time.sleep(0.1))
    assert share.blocked + share.waited >= 95e6
    assert share.computed <= 20e6


def test_a_rival_that_holds_the_gil_blocks_and_its_computing_is_seen() -> None:
    stop = threading.Event()

    def compete() -> None:
        while not stop.is_set():
            sum(range(10_000))

    rival = threading.Thread(target=compete)
    rival.start()
    try:
        share = share_of(lambda: compute(0.1))
    finally:
        stop.set()
        rival.join()
    assert share.blocked + share.waited >= 40e6
    assert share.rivals >= 40e6


def test_readings_of_two_threads_are_not_compared() -> None:
    found: list[Reading] = []
    other = threading.Thread(target=lambda: found.append(reading()))
    other.start()
    other.join()
    assert between(found[0], reading()) is None


def test_a_descriptor_ends_with_its_thread() -> None:
    reading()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        one = threading.Thread(target=reading)
        one.start()
        one.join()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_forked_child_reads_its_own_account() -> None:
    compute(0.05)
    parent = reading()[2]
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            own, _, account, _ = reading()
            os.write(send, f"{own.thread} {os.getpid()} {cpu_ns(account)}".encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as file:
        thread, process, computed = map(int, file.read().split())
    os.waitpid(pid, 0)
    assert thread == process == pid
    assert computed < cpu_ns(parent)


def test_whose_descriptors_were_closed_loses_a_reading_and_no_file(tmp_path: Path) -> None:
    reading()
    number = threads._own.descriptor.number
    with (tmp_path / "own").open("w+") as file:
        first = reading()
        os.dup2(file.fileno(), number)
        assert between(first, reading()) is None
        assert share_of(lambda: compute(0.01)).computed > 0
        os.close(number)  # it was still open


def test_where_there_is_no_schedstat_the_cpu_time_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_has_schedstat", False)
    monkeypatch.setattr(threads, "_own", threading.local())
    share = share_of(lambda: compute(0.02))
    assert share.computed >= 20e6
    assert (share.waited, share.blocked) == (UNKNOWN, UNKNOWN)


def test_no_more_descriptors_are_held_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_DESCRIPTORS", threads._open_now[0])
    found: list[Reading] = []
    one = threading.Thread(target=lambda: found.append(reading()))
    one.start()
    one.join()
    assert isinstance(found[0][2], int)


def test_a_recent_account_will_do_where_one_is_asked_for_often() -> None:
    first = threads.account()
    assert first is not None
    assert threads.account(first[threads.AT] + threads.RECENT_NS - 1) is first
    assert threads.account(first[threads.AT] + threads.RECENT_NS) is not first
    assert threads.account() is not threads.account()


@pytest.mark.parametrize("read", [threads._read_account, threads.read_account])
def test_an_account_is_read_in_c_as_in_python(read: Callable[[int], tuple[int, bytes, int, int]]) -> None:
    own = Descriptor(threading.get_native_id())
    before, process = time.time_ns(), time.process_time_ns()
    at, said, computed, took = read(own.number)
    assert before <= at <= time.time_ns()
    assert len(list(map(int, said.split()))) == 3
    assert process <= computed <= time.process_time_ns()
    assert 0 < took <= time.time_ns() - before + 1_000_000
    with pytest.raises(OSError, match="Bad file descriptor"):
        read(1 << 20)


def test_a_reading_that_hangs_counts_and_one_that_waits_for_the_gil_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[int] = []
    monkeypatch.setattr(threads.SOURCE, "took", slow.append)
    own = Descriptor(threading.get_native_id())
    monkeypatch.setattr(threads, "_own", threading.local())
    account = threads._read_account(own.number)[:3]
    monkeypatch.setattr(threads, "read_account", lambda _: (*account, SLOW_NS))
    reading()
    assert slow == [SLOW_NS]
    if threads._native is None:
        return
    monkeypatch.setattr(threads, "read_account", threads._native.read_account)
    stop = threading.Event()

    def compete() -> None:
        while not stop.is_set():
            sum(range(10_000))

    rivals = [threading.Thread(target=compete) for _ in range(3)]
    for one in rivals:
        one.start()
    try:
        for _ in range(20):
            reading()
    finally:
        stop.set()
        for one in rivals:
            one.join()
    assert len(slow) <= 2  # where it lost the CPU
