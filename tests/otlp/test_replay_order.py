"""The order of a spool's batches: its own, but what fails by itself goes behind, and what an outage fails does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.otlp.export.response import STUCK_AFTER
from stagetrace.otlp.export.spool import ReplayOrder

if TYPE_CHECKING:
    import pytest


class Folder:
    """A spool, as far as its names go."""

    def __init__(self, *names: str) -> None:
        self.batches = list(names)

    def names(self) -> list[str]:
        return list(self.batches)


def made(*names: str) -> tuple[ReplayOrder, Folder]:
    folder: Any = Folder(*names)
    return ReplayOrder(folder), folder


def following(order: ReplayOrder) -> str | None:
    return next(order.turn(), None)


def fail(order: ReplayOrder, times: int) -> list[str | None]:
    tried = []
    for _ in range(times):
        name = following(order)
        order.failed(str(name))
        tried.append(name)
    return tried


def test_all_come_once_in_the_order_of_the_spool() -> None:
    order, folder = made("a", "b", "c")
    assert list(order.turn()) == ["a", "b", "c"]
    folder.batches = ["d"]
    assert [following(order), following(order)] == ["d", "d"]  # nobody has taken it away
    folder.batches = []
    assert following(order) is None


def test_new_ones_are_seen_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("stagetrace.otlp.export.spool.time.monotonic", lambda: clock[0])
    order, folder = made("b", "c", "d")
    assert following(order) == "b"
    folder.batches = ["a", "c", "d"]
    assert following(order) == "c"
    clock[0] += 11
    assert following(order) == "a"


def test_what_an_outage_fails_keeps_its_place() -> None:
    order, _ = made("a", "b")
    assert fail(order, STUCK_AFTER) == ["a"] * STUCK_AFTER
    for _ in range(10):
        name = following(order)
        assert name == "a"
        assert order.suspects(name)
        order.away()


def test_what_is_suspected_and_fails_while_others_are_taken_goes_behind() -> None:
    order, _ = made("a", "b", "c")
    assert fail(order, STUCK_AFTER + 1) == ["a"] * (STUCK_AFTER + 1)
    assert list(order.turn()) == ["b", "c", "a"]
    assert not order.suspects("b")


def test_several_may_be_at_fault() -> None:
    order, _ = made("a", "b", "c")
    fail(order, 2 * (STUCK_AFTER + 1))
    assert list(order.turn()) == ["c", "a", "b"]


def test_of_what_is_gone_nothing_is_kept() -> None:
    order, folder = made("a", "b")
    fail(order, STUCK_AFTER + 1)
    folder.batches = ["b"]
    assert following(order) == "b"
    assert not order._failures
    assert not order._blamed
