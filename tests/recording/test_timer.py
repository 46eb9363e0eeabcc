"""The timer that the sampler of late requests waits for, in both implementations."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from missing import unused
from stagetrace.request.in_flight import HAS_KERNEL_TIMERS, KernelTimer, Late, PythonTimer, make

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.request.in_flight import Timer

pytestmark = pytest.mark.native

HOUR_NS = 3_600_000_000_000
GENEROUS_S = 60.0


@pytest.fixture(params=[KernelTimer, PythonTimer])
def timer(request: pytest.FixtureRequest) -> Iterator[Timer]:
    if request.param is KernelTimer and not HAS_KERNEL_TIMERS:
        unused()
    made: Timer = request.param()
    yield made
    made.close()


@pytest.fixture
def kernel_timer() -> Iterator[KernelTimer]:
    if not HAS_KERNEL_TIMERS:
        unused()
    made = KernelTimer()
    yield made
    made.close()


class Waiting:
    """A thread that waits for a timer once."""

    def __init__(self, timer: Timer) -> None:
        self.result: Late | OSError | None = None
        self.number = 0
        self._thread = threading.Thread(target=self._wait, args=(timer,), daemon=True)
        self._thread.start()

    def _wait(self, timer: Timer) -> None:
        self.number = threading.get_native_id()
        try:
            self.result = timer.wait()
        except OSError as error:
            self.result = error

    def end(self) -> Late | OSError | None:
        self._thread.join(GENEROUS_S)
        assert not self._thread.is_alive()
        return self.result

    def until_asleep(self) -> None:
        while (
            not self.number
            or Path(f"/proc/self/task/{self.number}/stat").read_text().rpartition(")")[2].split()[0] != "S"
        ):
            pass

    def times_asleep(self) -> int:
        """Return how often the thread has gone to sleep."""
        status = Path(f"/proc/self/task/{self.number}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_the_best_one_is_made() -> None:
    made = make()
    assert isinstance(made, KernelTimer if HAS_KERNEL_TIMERS else PythonTimer)
    made.close()


def test_it_ends_at_the_time_that_was_set_last(timer: Timer) -> None:
    waiting = Waiting(timer)
    timer.set(HOUR_NS)
    timer.clear()
    timer.set(HOUR_NS)
    timer.set(1_000_000)
    late = waiting.end()
    assert isinstance(late, Late)
    assert late.cpu_ns >= 0
    assert late.gil_ns >= 0


def test_what_was_set_before_the_wait_counts(timer: Timer) -> None:
    timer.set(0)
    assert isinstance(Waiting(timer).end(), Late)


def test_it_ends_once(timer: Timer) -> None:
    timer.set(0)
    timer.wait()
    waiting = Waiting(timer)
    timer.set(HOUR_NS)
    assert waiting.result is None
    timer.set(0)
    assert isinstance(waiting.end(), Late)


def test_setting_it_later_wakes_nobody(kernel_timer: KernelTimer) -> None:
    kernel_timer.set(HOUR_NS)
    waiting = Waiting(kernel_timer)
    waiting.until_asleep()
    before = waiting.times_asleep()
    for more in range(1_000):
        kernel_timer.set(HOUR_NS + more)
        kernel_timer.clear()
    assert waiting.times_asleep() == before
    kernel_timer.set(0)
    waiting.end()


def test_the_wait_for_the_gil_is_known_apart(kernel_timer: KernelTimer) -> None:
    """A function in C keeps the GIL, as the timer ends, for so long that no wait for a CPU is taken for it."""
    waiting = Waiting(kernel_timer)
    waiting.until_asleep()
    kernel_timer.set(1_000_000)
    ctypes.PyDLL(None).usleep(900_000)
    late = waiting.end()
    assert isinstance(late, Late)
    assert late.cpu_ns + late.gil_ns >= 800_000_000
    assert late.gil_ns > 1_000_000
    assert late.computed.keys() >= {waiting.number, threading.get_native_id()}, "of all threads, before that wait"
    assert 0 < late.computed[threading.get_native_id()] <= time.thread_time_ns()


def test_another_file_with_its_number_is_left_alone(kernel_timer: KernelTimer) -> None:
    """A service that becomes a daemon closes descriptors that are not its own."""
    number = kernel_timer._number
    reader, writer = os.pipe()
    os.write(writer, b"theirs")
    os.dup2(reader, number)
    for use in (lambda: kernel_timer.set(1), kernel_timer.clear, kernel_timer.wait):
        with pytest.raises(OSError, match="Invalid argument"):
            use()
    kernel_timer.close()
    assert os.read(number, 100) == b"theirs"
    for one in (number, reader, writer):
        os.close(one)


def test_another_timer_with_its_number_is_left_alone(kernel_timer: KernelTimer) -> None:
    theirs = KernelTimer()
    theirs.set(HOUR_NS)
    number = kernel_timer._number
    os.dup2(theirs._number, number)
    for use in (lambda: kernel_timer.set(1), kernel_timer.clear, kernel_timer.wait):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()
    kernel_timer.close()
    os.fstat(number)
    os.close(number)
    waiting = Waiting(theirs)
    waiting.until_asleep()
    assert waiting.result is None
    theirs.set(0)
    assert isinstance(waiting.end(), Late)
    theirs.close()


def test_a_closed_one_is_reported(kernel_timer: KernelTimer) -> None:
    kernel_timer.close()
    for use in (lambda: kernel_timer.set(1), kernel_timer.clear, kernel_timer.wait):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()
    kernel_timer.close()


@pytest.mark.parametrize("given", [(), (1,), ("1", 2, 3), (2**70, 2, 3), (1.5, 2, 3)])
def test_functions_check_what_they_get(given: tuple[object, ...]) -> None:
    if not HAS_KERNEL_TIMERS:
        unused()
    from stagetrace import _native

    for function in (_native.set_timer, _native.wait_for_timer, _native.close_timer):
        with pytest.raises((TypeError, OverflowError)):
            function(*given)
    with pytest.raises(TypeError):
        _native.make_timer("x")
