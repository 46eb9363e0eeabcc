"""What a blocked thread waits for is seen while it waits: another thread of the process, or anything else."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from at_once import in_a_thread
from missing import unused
from stagetrace.sources import thread_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(thread_cpu.lacks_waiting() is not None, reason=str(thread_cpu.lacks_waiting())),
]
BLOCKED_S = 0.4


@pytest.fixture(autouse=True)
def _in_c() -> None:
    if thread_cpu._in_c is None:
        unused()


def share_of(work: Callable[[], Any]) -> thread_cpu.Share:
    """Return how the time of a thread divides in which this is a section."""

    def section() -> thread_cpu.Share | None:
        first = thread_cpu.sample()
        assert first is not None
        work()
        last = thread_cpu.sample_since(first)
        thread_cpu.end_section()
        assert last is not None
        return thread_cpu.between(first, last)

    share: thread_cpu.Share | None = in_a_thread(section)
    assert share is not None
    return share


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(BLOCKED_S, lock.release).start()
    with lock:
        pass


def wait_for_a_socket() -> None:
    ours, others = socket.socketpair()
    threading.Timer(BLOCKED_S, lambda: others.send(b"x")).start()
    ours.recv(1)
    ours.close()
    others.close()


@pytest.mark.parametrize(
    ("work", "least", "most"),
    [(wait_for_a_lock, 0.9, 1), (wait_for_a_socket, 0, 0.1), (lambda: time.sleep(BLOCKED_S), 0, 0.1)],
)
def test_a_wait_for_another_thread_is_told_from_any_other(work: Callable[[], Any], least: float, most: float) -> None:
    share = share_of(work)
    assert share.for_threads is not None
    assert least <= share.for_threads <= most


def test_nothing_is_seen_of_a_section_that_is_over_at_once_nor_between_sections() -> None:
    def work() -> tuple[int, int]:
        place = thread_cpu.claim(threading.get_native_id())
        try:
            before = thread_cpu.touch(place)
            thread_cpu.leave(place)
            time.sleep(0.1)
            return before, thread_cpu.touch(place)
        finally:
            thread_cpu.release(place)

    before, after = in_a_thread(work)
    assert before == after
    assert thread_cpu.share_for_threads(before, after) is None


def test_a_thread_that_stays_blocked_is_looked_at_no_more() -> None:
    def work() -> float | None:
        place = thread_cpu.claim(threading.get_native_id())
        try:
            before = thread_cpu.touch(place)
            time.sleep(1.5)
            seen = thread_cpu._in_c.touch_place(place) - before & 0xFFFFFFFF
            assert 2 <= seen <= 100
            return thread_cpu.share_for_threads(before, before + seen)
        finally:
            thread_cpu.release(place)

    assert in_a_thread(work) == 0


def test_places_are_few_and_come_back() -> None:
    claimed = [thread_cpu.claim(1_000_000 + number) for number in range(300)]
    assert claimed[-1] == -1
    assert thread_cpu.touch(-1) == 0
    assert thread_cpu.touch(10_000) == 0
    thread_cpu.leave(-1)
    for place in claimed:
        thread_cpu.release(place)
    again = thread_cpu.claim(1_000_000)
    assert again >= 0
    thread_cpu.touch(again)  # of a thread that there is not
    time.sleep(0.05)
    thread_cpu.release(again)


@pytest.mark.parametrize("wrong", ["x", None, 1 << 80])
def test_what_is_no_place_is_refused(wrong: Any) -> None:
    for function in (thread_cpu.claim, thread_cpu.touch, thread_cpu.leave, thread_cpu.release):
        with pytest.raises((TypeError, OverflowError)):
            function(wrong)


def test_a_forked_child_has_a_thread_of_its_own_that_looks() -> None:
    share_of(wait_for_a_lock)
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            os.write(send, str(share_of(wait_for_a_lock).for_threads).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert float(said) >= 0.9


def test_the_samples_between_two_looks_survive_an_overflow() -> None:
    top = 0xFFFFFFFF
    assert thread_cpu.share_for_threads(top << 32 | top, 2 << 32 | 0) == 0.75
    assert thread_cpu.share_for_threads(5 << 32, 6 << 32) is None
