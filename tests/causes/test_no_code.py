"""A breach without a line of code says why, and is counted."""

from __future__ import annotations

import sysconfig
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace.causes import stall_sampler
from stagetrace.request.in_flight import in_flight
from stagetrace.request.request import Request
from stagetrace.request.stalls import REQUEST, Stall

if TYPE_CHECKING:
    from collections.abc import Iterator

MS = 1_000_000
HERE = (lambda: None).__code__
NAMES: Any = {"co_filename": f"{sysconfig.get_paths()['stdlib']}/asyncio/events.py"}
STANDARD = HERE.replace(**NAMES)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[Request]:
    monkeypatch.setattr(stall_sampler, "SOURCE", SimpleNamespace(is_used=True))
    monkeypatch.setattr(stall_sampler, "counts", type(stall_sampler.counts)())
    made = Request()
    yield made
    made.abandon()


def reason(record: Request, *stalls: Stall, late_ms: int = 30, is_over: bool = False) -> str:
    end = record.started + 100 * MS
    found = stall_sampler.why(record, stalls, end - late_ms * MS, end, is_over=is_over)
    assert stall_sampler.counts[found.word] == 1
    assert found.evidence.startswith("; no line of code: ")
    return found.word


def test_what_was_sampled_may_say_nothing_of_the_cause(record: Request) -> None:
    assert reason(record, Stall(1, REQUEST, ((HERE, 3),))) == "elsewhere"
    assert reason(record, Stall(1, REQUEST, ((STANDARD, 3),))) == "libraries"
    assert reason(record, Stall(1, REQUEST, ((HERE, 3),)), is_over=True) == "after_wait"


def test_the_sampler_may_not_have_reached_it(record: Request) -> None:
    assert reason(record, late_ms=0) == "not_late"
    assert reason(record) == "not_reached"
    assert record.skipped_stalls == 0


def test_a_rest_of_the_sampler_is_a_skipped_time(record: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "rest_until", time.monotonic_ns() - 10 * MS)
    assert reason(record, late_ms=5) == "not_reached"
    assert reason(record) == "skipped"
    assert record.skipped_stalls == 1


def test_stacks_may_be_off(record: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall_sampler, "SOURCE", SimpleNamespace(is_used=False))
    assert reason(record) == "off"
