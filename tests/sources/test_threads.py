"""A thread's time is divided as it was spent: computing, waiting for a CPU, blocked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import pytest

from at_once import in_a_thread
from stagetrace.request.request import Request
from stagetrace.sources import thread_cpu
from stagetrace.sources.base import SLOW_NS
from stagetrace.sources.thread_cpu import UNKNOWN, CpuSample, Descriptor, between, read_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(thread_cpu.lacks_waiting() is not None, reason=str(thread_cpu.lacks_waiting())),
]
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


@contextmanager
def rivals(count: int) -> Iterator[None]:
    """Let so many threads of this process compute in Python."""
    stop = threading.Event()

    def compete() -> None:
        while not stop.is_set():
            sum(range(10_000))

    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(compete)
        try:
            yield
        finally:
            stop.set()


def compute(cpu_s: float) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(500))


def share_of(work: Callable[[], None]) -> thread_cpu.Share:
    first = read_sample()
    work()
    share = between(first, read_sample())
    assert share is not None
    return share


def test_computing_among_burners_is_computing_and_waiting() -> None:
    """The parts add up to the wall time within 2 %, though the kernel counts each for itself.

    At its best: other threads of this process may have the GIL, and the thread may lose the CPU within a sample.
    """
    shares = []
    with burners():
        for _ in range(20):
            shares.append(share_of(lambda: compute(0.1)))
            if is_computing_and_waiting(shares[-1]):
                return
    raise AssertionError(shares)


def is_computing_and_waiting(share: thread_cpu.Share) -> bool:
    within = share.wall * 0.02 + 1e6
    return (
        100e6 <= share.computed <= 105e6
        and share.waited > 20e6
        and share.computed + share.waited <= share.wall + within
        and share.blocked <= within
    )


def test_sleeping_is_being_blocked() -> None:
    share = share_of(lambda: time.sleep(0.1))
    assert share.blocked + share.waited >= 95e6
    assert share.computed <= 20e6


def test_a_rival_that_holds_the_gil_blocks_and_its_computing_is_seen() -> None:
    with rivals(1):
        share = share_of(lambda: compute(0.1))
    assert share.blocked + share.waited >= 40e6
    assert share.rivals >= 40e6


def test_readings_of_two_threads_are_not_compared() -> None:
    assert between(in_a_thread(read_sample), read_sample()) is None


def test_a_descriptor_ends_with_its_thread() -> None:
    read_sample()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        in_a_thread(read_sample)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_forked_child_reads_its_own_account() -> None:
    compute(0.05)
    parent = read_sample()[thread_cpu.COMPUTED]
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            own, _, computed, *_ = read_sample()
            os.write(send, f"{own.thread} {os.getpid()} {computed}".encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as file:
        thread, process, computed = map(int, file.read().split())
    os.waitpid(pid, 0)
    assert thread == process == pid
    assert computed < parent


def test_whose_descriptors_were_closed_loses_a_reading_and_no_file(tmp_path: Path) -> None:
    read_sample()
    number = thread_cpu._own.descriptor.number
    with (tmp_path / "own").open("w+") as file:
        first = read_sample()
        os.dup2(file.fileno(), number)
        assert between(first, read_sample()) is None
        assert share_of(lambda: compute(0.01)).computed > 0
        os.close(number)  # it was still open


def test_where_there_is_no_schedstat_the_cpu_time_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_cpu, "_has_schedstat", False)
    monkeypatch.setattr(thread_cpu, "_own", threading.local())
    share = share_of(lambda: compute(0.02))
    assert share.computed >= 20e6
    assert (share.waited, share.blocked) == (UNKNOWN, UNKNOWN)


def test_no_more_descriptors_are_held_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_cpu, "MAX_DESCRIPTORS", thread_cpu._open_now[0])
    assert in_a_thread(read_sample)[thread_cpu.SCHEDSTAT] is None


def test_a_recent_account_will_do_where_one_is_asked_for_often() -> None:
    first = thread_cpu.sample()
    assert first is not None
    assert thread_cpu.sample(first[thread_cpu.AT] + thread_cpu.RECENT_NS - 1) is first
    assert thread_cpu.sample(first[thread_cpu.AT] + thread_cpu.RECENT_NS) is not first
    assert thread_cpu.sample() is not thread_cpu.sample()


def test_the_kernel_is_not_asked_again_of_a_thread_that_has_computed_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clocks go on: what is worked out from such an account is as exact as from one that was read."""
    clock, asked = [1_000_000_000], [0]
    own = Descriptor(threading.get_native_id())

    def read(_: int) -> tuple[int, int, bytes, int, int]:
        asked[0] += 1
        return clock[0], 5_000_000, b"%d 7000 1" % asked[0], 9_000_000, 0

    def go_on(wall: int, computed: int) -> CpuSample:
        monkeypatch.setattr(thread_cpu, "_own", threading.local())
        thread_cpu._own.descriptor = own
        monkeypatch.setattr(time, "thread_time_ns", lambda: 5_000_000 + computed)
        monkeypatch.setattr(time, "process_time_ns", lambda: 9_100_000 + computed)
        assert thread_cpu.sample() is not None
        account = thread_cpu.sample(clock[0] + wall)
        assert account is not None
        return account

    monkeypatch.setattr(thread_cpu, "read_account", read)
    brought = go_on(3_000_000, 2_900_000)
    assert brought[:5] == (own, 1_003_000_000, 7_900_000, b"1 7000 1", 12_000_000)
    assert asked == [1]
    go_on(3_000_000, 3_000_000 - thread_cpu.RECENT_NS)
    assert asked == [3]  # it was off a CPU for too long
    go_on(thread_cpu.NEAR_NS, thread_cpu.NEAR_NS)
    assert asked == [5]


def test_what_was_computed_since_the_last_tick_counts() -> None:
    """The kernel's account of a thread's CPU time is of the last tick: sections of a few ticks would be out by one.

    At its best: what interrupts the readings themselves only adds to the difference.
    """
    read_sample()
    for milliseconds in range(1, 9):
        missed = []
        for _ in range(5):
            began = time.thread_time_ns()
            share = share_of(lambda ms=milliseconds: spin(ms / 1e3))  # type: ignore[misc]
            missed.append(time.thread_time_ns() - began - share.computed)
        assert 0 <= min(missed) <= 300_000


def spin(wall_s: float) -> None:
    """Compute without asking for the CPU time, which would bring the kernel's account of it up to date."""
    until = time.perf_counter() + wall_s
    while time.perf_counter() < until:
        pass


@pytest.mark.parametrize("read", [thread_cpu._read_account, thread_cpu.read_account])
def test_an_account_is_read_in_c_as_in_python(read: Callable[[int], tuple[int, int, bytes, int, int]]) -> None:
    own = Descriptor(threading.get_native_id())
    before, thread, process = time.time_ns(), time.thread_time_ns(), time.process_time_ns()
    at, computed, said, others, took = read(own.number)
    assert before <= at <= time.time_ns()
    assert thread <= computed <= time.thread_time_ns()
    assert len(list(map(int, said.split()))) == 3
    assert process <= others <= time.process_time_ns()
    assert 0 < took <= time.time_ns() - before + 1_000_000
    with pytest.raises(OSError, match="Bad file descriptor"):
        read(1 << 20)


def test_a_reading_that_hangs_counts_and_one_that_waits_for_the_gil_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[int] = []
    monkeypatch.setattr(thread_cpu.SOURCE, "took", slow.append)
    own = Descriptor(threading.get_native_id())
    monkeypatch.setattr(thread_cpu, "_own", threading.local())
    account = thread_cpu._read_account(own.number)[:-1]
    monkeypatch.setattr(thread_cpu, "read_account", lambda _: (*account, SLOW_NS))
    read_sample()
    assert slow == [SLOW_NS]
    if thread_cpu._native is None:
        return
    monkeypatch.setattr(thread_cpu, "read_account", thread_cpu._native.read_account)
    with rivals(3):
        for _ in range(20):
            read_sample()
    assert len(slow) <= 2  # where it lost the CPU


def test_a_reading_in_which_the_thread_loses_its_cpu_does_not_count_as_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine with too few CPUs that is often; a kernel that hangs does so each time."""
    own, read = Descriptor(threading.get_native_id()), os.pread
    slow: list[float] = [0.03]

    def pread(*args: Any) -> bytes:
        time.sleep(slow.pop() if slow else 0)
        return read(*args)

    monkeypatch.setattr(os, "pread", pread)
    assert thread_cpu._read_account(own.number)[-1] < SLOW_NS
    slow += [0.03] * thread_cpu.TRIES
    assert thread_cpu._read_account(own.number)[-1] >= SLOW_NS


def test_what_other_greenlets_compute_is_not_counted() -> None:
    """Which of them computed, in a thread that changes hands, is not known; who keeps it has its account."""
    found: dict[str, thread_cpu.Share | None] = {}

    def divide(name: str, work: Callable[[], object]) -> None:
        first = thread_cpu.sample()
        work()
        last = thread_cpu.sample()
        assert first is not None
        assert last is not None
        found[name] = between(first, last)

    def let_others_go_first_and_compute() -> None:
        gevent.sleep(0)
        compute(0.01)

    def serve() -> None:
        works: dict[str, Callable[[], object]] = {
            "waits": lambda: gevent.sleep(0.02),
            "lets others go first": lambda: gevent.sleep(0),
            "computes": lambda: compute(0.05),
            "computes and lets others go first": let_others_go_first_and_compute,
        }
        gevent.joinall([gevent.spawn(divide, *each) for each in works.items()], raise_error=True)
        divide("computes again", lambda: compute(0.02))

    in_a_thread(serve)
    kept = {name for name, share in found.items() if share is not None}
    assert len(found) == 5
    assert kept == {"computes", "computes again"}


def test_the_rest_of_a_request_is_divided_from_its_own_begin_on() -> None:
    """Its first sample may be an earlier one of its thread; that of another thread begins nothing here."""
    begun = thread_cpu.sample()
    assert begun is not None
    record = Request(start=begun[thread_cpu.AT] + 1)
    record.step = begun
    while time.time_ns() - record.started < 2 * thread_cpu.DIVIDED_NS:
        pass
    in_a_thread(record.divide_rest)
    assert not record.cpu_samples
    record.divide_rest()
    ((first, last),) = record.cpu_samples
    assert first is begun
    assert thread_cpu.between(first, last) is not None


def test_the_rest_of_a_request_begins_where_its_last_section_ended() -> None:
    """Also where that section only computed, so that the kernel was not asked again at its end."""
    request = Request(start=time.time_ns())
    works: list[Callable[[], None]] = [lambda: time.sleep(0.003), lambda: compute(0.003)]
    for work in works:
        first = thread_cpu.sample(time.time_ns())
        work()
        request.divide(first)
    compute(0.003)
    request.divide_rest()
    ends = [last[thread_cpu.AT] for _, last in request.cpu_samples]
    assert [first[thread_cpu.AT] for first, _ in request.cpu_samples][1:] == [pytest.approx(ends[0], abs=1e6), ends[1]]
