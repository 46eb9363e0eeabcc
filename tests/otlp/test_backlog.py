"""The order of a spool's batches: its own, but what fails by itself goes behind, and what an outage fails does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.otlp.backlog import STUCK_AFTER, Backlog

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
    monkeypatch.setattr("stagetrace.otlp.backlog.time.monotonic", lambda: clock[0])
    backlog, folder = made("b", "c", "d")
    assert following(backlog) == "b"
    folder.waiting = ["a", "c", "d"]
    assert following(backlog) == "c"
    clock[0] += 11
    assert following(backlog) == "a"


def test_what_fails_again_and_again_goes_behind_until_something_is_taken() -> None:
    backlog, folder = made("a", "b", "c")
    assert fail(backlog, STUCK_AFTER) == ["a"] * STUCK_AFTER
    assert following(backlog) == "b"
    folder.waiting.remove("b")
    backlog.works_again()
    assert following(backlog) == "a"


def test_what_fails_again_and_again_after_that_stays_behind() -> None:
    backlog, folder = made("a", "b", "c", "d")
    for taken in ("b", "c"):
        fail(backlog, STUCK_AFTER)
        assert following(backlog) == taken
        folder.waiting.remove(taken)
        backlog.works_again()
    assert list(backlog.turn()) == ["d", "a"]


def test_all_that_an_outage_failed_have_their_places_again() -> None:
    backlog, folder = made("a", "b", "c")
    assert fail(backlog, 2 * STUCK_AFTER) == ["a"] * STUCK_AFTER + ["b"] * STUCK_AFTER
    assert following(backlog) == "c"
    folder.waiting.remove("c")
    backlog.works_again()
    assert list(backlog.turn()) == ["a", "b"]


def test_if_all_fail_the_first_is_tried() -> None:
    backlog, _ = made("a", "b")
    fail(backlog, 2 * STUCK_AFTER)
    assert fail(backlog, 4) == ["a"] * 4


def test_of_what_is_gone_nothing_is_kept() -> None:
    backlog, folder = made("a", "b")
    fail(backlog, 1)
    backlog.works_again()
    fail(backlog, 1)
    folder.waiting = ["b"]
    assert following(backlog) == "b"
    assert not backlog._failures
    assert not backlog._acquitted
