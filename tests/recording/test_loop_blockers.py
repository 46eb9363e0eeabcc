"""Since when other work has blocked the event loop that was to resume a request."""

from __future__ import annotations

from collections import deque
from threading import get_ident
from typing import Any

import pytest

from stagetrace.request import loop_blockers
from stagetrace.request.request import Request
from stagetrace.sources import thread_cpu

MS = 1_000_000
STEP_MS = 100


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what notes a long step of another request: from, to, in ms, and by which."""
    notes: deque[Any] = deque()
    monkeypatch.setattr(loop_blockers, "_blocked", notes)

    def note(start: int, end: int, label: str, thread: int | None = None) -> None:
        notes.append((thread or get_ident(), start * MS, end * MS, label, ""))

    return note


def behind(start: int, end: int) -> list[tuple[int, int, str]]:
    record = Request(start=0)
    loop_blockers.note_behind(start * MS, end * MS, record)
    return [(since // MS, until // MS, other) for since, until, other in record.behind]


def test_a_step_that_ends_as_the_request_goes_on_has_kept_it_waiting(blocked: Any) -> None:
    blocked(0, 300, "GET /block")
    assert behind(20, 301) == [(20, 301, "GET /block")]


def test_steps_one_right_after_the_other_are_one_wait(blocked: Any) -> None:
    blocked(0, 100, "GET /a")
    blocked(102, 300, "GET /b")
    assert behind(50, 302) == [(50, 302, "GET /b")]


def test_a_step_after_which_the_loop_was_free_has_kept_nothing_waiting(blocked: Any) -> None:
    """What was ready then would have run."""
    blocked(0, 300, "GET /block")
    assert behind(20, 400) == []


def test_a_step_in_another_thread_is_none(blocked: Any) -> None:
    blocked(0, 300, "GET /block", thread=1)
    assert behind(20, 301) == []


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(
    ("computed_ms", "waited_ms", "turns", "others_ms", "is_blocker"),
    [
        (90, 5, 20, 100, True),
        (0, 0, 1, 100, True),  # it slept, whatever others computed
        (0, 0, 30, 0, True),  # it waited often, for no thread that computes
        (10, 5, 30, 100, False),  # for the GIL
        (20, 70, 1, 0, False),  # for a CPU
    ],
)
def test_a_step_that_waited_for_the_gil_or_a_cpu_most_of_the_time_is_no_blocker(
    monkeypatch: pytest.MonkeyPatch,
    computed_ms: int,
    waited_ms: int,
    turns: int,
    others_ms: int,
    is_blocker: bool,
) -> None:
    request, thread = Request(start=0), thread_cpu.Descriptor(get_ident())
    request.step = (thread, 0, 0, b"0 0 0", 0, None, 0)
    schedstat = b"0 %d %d" % (waited_ms * MS, turns)
    last = (thread, STEP_MS * MS, computed_ms * MS, schedstat, (computed_ms + others_ms) * MS, None, 0)
    monkeypatch.setattr(request, "divide", lambda _: last)
    loop_blockers.end_step(0, STEP_MS * MS, request)
    assert (loop_blockers.blocker(0, STEP_MS * MS) is not None) == is_blocker
