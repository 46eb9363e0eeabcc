"""The order of a spool's batches: its own, but what fails by itself goes behind, and what an outage fails does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.otlp.export.replay_order import STUCK_AFTER, Backlog

if TYPE_CHECKING:
    import pytest


class Folder:
    """A spool, as far as its names go."""

    def __init__(self, *names: str) -> None:
        self.waiting = list(names)

    def names(self) -> list[str]:
        return list(self.waiting)


def made(*names: str) -> tuple[Backlog, Folder]:
    folder: Any = Folder(*names)
    return Backlog(folder), folder


def following(backlog: Backlog) -> str | None:
    return next(backlog.turn(), None)


def fail(backlog: Backlog, times: int) -> list[str | None]:
    tried = []
    for _ in range(times):
        name = following(backlog)
        backlog.failed(str(name))
        tried.append(name)
    return tried


def test_all_come_once_in_the_order_of_the_spool() -> None:
    backlog, folder = made("a", "b", "c")
    assert list(backlog.turn()) == ["a", "b", "c"]
    folder.waiting = ["d"]
    assert [following(backlog), following(backlog)] == ["d", "d"]  # nobody has taken it away
    folder.waiting = []
    assert following(backlog) is None


def test_new_ones_are_seen_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("stagetrace.otlp.export.replay_order.time.monotonic", lambda: clock[0])
    backlog, folder = made("b", "c", "d")
    assert following(backlog) == "b"
    folder.waiting = ["a", "c", "d"]
    assert following(backlog) == "c"
    clock[0] += 11
    assert following(backlog) == "a"


def test_what_an_outage_fails_keeps_its_place() -> None:
    backlog, _ = made("a", "b")
    assert fail(backlog, STUCK_AFTER) == ["a"] * STUCK_AFTER
    for _ in range(10):
        name = following(backlog)
        assert name == "a"
        assert backlog.suspects(name)
        backlog.away()


def test_what_is_suspected_and_fails_while_others_are_taken_goes_behind() -> None:
    backlog, _ = made("a", "b", "c")
    assert fail(backlog, STUCK_AFTER + 1) == ["a"] * (STUCK_AFTER + 1)
    assert list(backlog.turn()) == ["b", "c", "a"]
    assert not backlog.suspects("b")


def test_several_may_be_at_fault() -> None:
    backlog, _ = made("a", "b", "c")
    fail(backlog, 2 * (STUCK_AFTER + 1))
    assert list(backlog.turn()) == ["c", "a", "b"]


def test_of_what_is_gone_nothing_is_kept() -> None:
    backlog, folder = made("a", "b")
    fail(backlog, STUCK_AFTER + 1)
    folder.waiting = ["b"]
    assert following(backlog) == "b"
    assert not backlog._failures
    assert not backlog._blamed
