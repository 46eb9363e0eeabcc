"""A source that fails or hangs is switched off, and says so once."""

from __future__ import annotations

from typing import Any

import pytest

from stagetrace import config, guard
from stagetrace.sources.base import SLOW_NS, SLOW_READINGS, Source

NAME = "stagetrace.sources.of_a_test"


@pytest.fixture(autouse=True)
def _reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget also what a busy machine has switched off before, in this process."""
    monkeypatch.setattr(guard, "_switches", {})
    monkeypatch.setattr(guard, "failures", {})


def source(lack: Any = lambda: None) -> Source:
    return Source(NAME, "the wait of a test", config.SOCKET_WAIT, lack)


def fails() -> int:
    raise RuntimeError("injected fault")


def test_one_that_fails_ten_times_is_asked_no_more() -> None:
    one = source()
    assert [one.read(fails) for _ in range(guard.LIMIT)] == [None] * guard.LIMIT
    assert not one.is_used
    assert guard.switched_off() == [NAME]


def test_one_that_hangs_is_asked_no_more() -> None:
    one = source()
    for _ in range(SLOW_READINGS - 1):
        one.took(SLOW_NS)
        one.took(1_000)
    assert one.is_used
    one.took(SLOW_NS)
    assert not one.is_used
    assert one.read(lambda: 1) is None


def test_now_and_then_a_slow_reading_is_no_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    one = source()
    now = [0.0]
    monkeypatch.setattr("stagetrace.sources.base.time.monotonic", lambda: now[0])
    for _ in range(20):
        one.took(SLOW_NS)
        now[0] += 31
    assert one.is_used


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
