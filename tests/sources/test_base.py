"""A source that fails is switched off; one that is dear to read pauses, says so once, and is tried again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stagetrace import guard, log, settings
from stagetrace.sources import registry, thread_cpu
from stagetrace.sources.base import FIRST_PAUSE_S, HUNG_NS, LONGEST_PAUSE_S, SLOW_NS, SLOW_READINGS, WITHIN_S, Source

NAME = "stagetrace.sources.of_a_test"


@pytest.fixture(autouse=True)
def _reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget also what a busy machine has switched off before, in this process."""
    monkeypatch.setattr(guard, "_switches", {})
    monkeypatch.setattr(guard, "failures", {})


def source(lack: Any = lambda: None) -> Source:
    return Source(NAME, "the wait of a test", settings.SOCKET_WAIT, lack)


def fails() -> int:
    raise RuntimeError("injected fault")


def test_one_that_fails_ten_times_is_asked_no_more() -> None:
    one = source()
    assert [one.read(fails) for _ in range(guard.LIMIT)] == [None] * guard.LIMIT
    assert not one.is_used
    assert guard.switched_off() == [NAME]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time by which pauses begin and end."""
    moment = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def test_one_that_is_slow_to_read_pauses_and_is_tried_again(now: list[float]) -> None:
    one = source()
    for _ in range(SLOW_READINGS - 1):
        one.took(SLOW_NS)
        one.took(1_000)
    assert one.read(lambda: 1) == 1
    one.took(SLOW_NS)
    assert (one.is_used, one.read(lambda: 1)) == (True, None)
    assert one.why_paused() == "too slow to read, paused once, now for another 1 s"
    now[0] += FIRST_PAUSE_S
    assert one.read(lambda: 1) == 1
    assert one.why_paused() == "too slow to read, paused once"


def test_pauses_get_longer_up_to_a_minute_and_short_again(
    now: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_logged", set())
    one = source()
    for _ in range(SLOW_READINGS):
        one.took(SLOW_NS)
    pauses = []
    for _ in range(8):
        pauses.append(one.paused_until - now[0])
        now[0] = one.paused_until
        assert one.read(lambda: 1) == 1
        one.took(SLOW_NS)
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert one.pauses == 9
    assert capsys.readouterr().err.count("the wait of a test took 20 ms to read, again") == 1
    now[0] = one.paused_until + WITHIN_S
    assert not one.is_paused()
    one.took(SLOW_NS)
    assert not one.is_paused()  # as at first: one is none
    for _ in range(SLOW_READINGS):
        one.took(SLOW_NS)
    assert one.paused_until - now[0] == FIRST_PAUSE_S


def test_what_the_scheduler_takes_from_a_read_is_not_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    one = source()
    for _ in range(SLOW_READINGS + 1):
        assert one.read(lambda: time.sleep(SLOW_NS / 1e9)) is None
    assert one.pauses == 0

    def compute() -> None:
        until = time.thread_time_ns() + SLOW_NS
        while time.thread_time_ns() < until:
            pass

    for _ in range(SLOW_READINGS):
        one.read(compute)
    assert one.pauses == 1

    hanging = source()
    walls = iter(range(0, 100 * HUNG_NS, HUNG_NS))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(walls))
    for _ in range(SLOW_READINGS):
        hanging.read(lambda: 1)
    assert hanging.pauses == 1


def test_doctor_and_the_status_count_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    one = source()
    monkeypatch.setattr(registry, "SOURCES", (one, thread_cpu.SOURCE))
    assert one.title not in registry.silent()
    for _ in range(SLOW_READINGS):
        one.took(SLOW_NS)
    assert registry.silent()[one.title] == "too slow to read, paused once, now for another 1 s"
    assert registry.states()[one.title] == "too slow to read, paused once, now for another 1 s"


def test_now_and_then_a_slow_reading_is_no_hanging(now: list[float]) -> None:
    one = source()
    for _ in range(20):
        one.took(SLOW_NS)
        now[0] += 31
    assert one.pauses == 0


def test_a_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGETRACE_SOCKET_WAIT", "0")
    assert not source().is_used
    monkeypatch.setenv("STAGETRACE_SOCKET_WAIT", "")
    assert source().is_used


def test_what_the_platform_lacks_is_said_and_not_read() -> None:
    one = source(lambda: "no such file")
    assert (one.lacks, one.is_used, one.read(lambda: 1)) == ("no such file", False, None)
    two = source(fails)
    assert (two.lacks, two.is_used) == ("RuntimeError: injected fault", False)
