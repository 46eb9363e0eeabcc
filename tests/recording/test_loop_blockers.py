"""Since when other work has blocked the event loop that was to resume a request."""

from __future__ import annotations

from collections import deque
from threading import get_ident
from typing import Any

import pytest

from stagetrace.request import loop_blockers
from stagetrace.request.request import Request

MS = 1_000_000


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
