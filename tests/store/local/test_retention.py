"""How long spans stay goes by when they were received, on a clock that neither senders nor a set system clock move."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from stagetrace.store.local import LocalReader, LocalStore, delta, table
from stagetrace.store.local.delta import File
from stagetrace.store.local.folder import TABLE
from store.local.made import HOUR, ids, request, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOUR_S = 3600
YEAR_S = 365 * 24 * HOUR_S


class Clocks:
    """The system's clock, which can be set, and the time that really passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._passed_s = self._set_s = 0.0
        begin, elapsed = time.time_ns() // 1_000_000, delta._elapsed_ms
        monkeypatch.setattr(delta, "_elapsed_ms", lambda: elapsed() + int(self._passed_s * 1000))

        def now() -> int:
            return begin + int((self._passed_s + self._set_s) * 1000)

        monkeypatch.setattr(delta, "now_ms", now)
        monkeypatch.setattr(delta, "now_ms", now)

    def let_pass(self, seconds: float) -> None:
        self._passed_s += seconds

    def set_ahead(self, seconds: float) -> None:
        self._set_s += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Also: the store moves, merges and drops nothing by itself."""
    monkeypatch.setattr(LocalStore, "_work", lambda _: None)
    return Clocks(monkeypatch)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], LocalStore]:
    return lambda: LocalStore.open(tmp_path / "store", retention_s=10 * HOUR_S)


def kept(store: LocalStore) -> list[int]:
    """Return the spans that are left after all that is too old is dropped."""
    store.flush()
    store._tidy()
    with store.reader() as reader:
        return ids(reader)


def test_starts_do_not_count(clocks: Clocks, opened: Callable[[], LocalStore]) -> None:
    """A sender whose clock is wrong loses nothing, keeps nothing longer and makes nobody else lose anything."""
    now = time.time_ns()
    with opened() as store:
        store.append(request([span(1, start=now), span(2, start=0), span(3, start=now + HOUR // 2)]))
        assert kept(store) == [1, 2, 3]
        clocks.let_pass(6 * HOUR_S)
        store.append(request([span(4, start=now - 1000 * HOUR)]))
        assert kept(store) == [1, 2, 3, 4]
        clocks.let_pass(6 * HOUR_S)
        assert kept(store) == [4]
        assert store.stats()["spans_expired"] == 3
        clocks.let_pass(6 * HOUR_S)
        assert kept(store) == []


@pytest.mark.parametrize("step_s", [YEAR_S, -YEAR_S])
def test_a_clock_that_is_set_does_not_count(clocks: Clocks, opened: Callable[[], LocalStore], step_s: int) -> None:
    with opened() as store:
        store.append(request([span(1)]))
        assert kept(store) == [1]
        clocks.set_ahead(step_s)
        assert kept(store) == [1]
        clocks.let_pass(6 * HOUR_S)
        store.append(request([span(2)]))
        assert kept(store) == [1, 2]
        clocks.set_ahead(-step_s)
        clocks.let_pass(6 * HOUR_S)
        assert kept(store) == [2]


@pytest.mark.parametrize("step_s", [YEAR_S, -YEAR_S])
def test_set_while_the_store_is_closed_it_counts_half_the_retention(
    clocks: Clocks, opened: Callable[[], LocalStore], step_s: int
) -> None:
    with opened() as store:
        store.append(request([span(1)]))
        store.flush()
        clocks.let_pass(6 * HOUR_S)
        store.append(request([span(2)]))
    clocks.set_ahead(step_s)
    with opened() as store:
        assert kept(store) == ([2] if step_s > 0 else [1, 2]), "6 h and 5 h ago; 6 h ago"
    clocks.set_ahead(-step_s)
    for _ in range(3):  # and the same time counts once
        with opened() as store:
            assert 2 in kept(store)


def test_time_while_the_store_is_closed_counts(clocks: Clocks, opened: Callable[[], LocalStore]) -> None:
    with opened() as store:
        store.append(request([span(1)]))
    clocks.let_pass(4 * HOUR_S)
    with opened() as store:
        clocks.let_pass(7 * HOUR_S)
        assert kept(store) == []


@pytest.mark.thorough
def test_files_are_merged_with_those_of_their_age(clocks: Clocks, opened: Callable[[], LocalStore]) -> None:
    """So that they are dropped whole, and late by a tenth of the retention at most; merging makes nothing younger."""
    with opened() as store:
        for number in range(1, 41):
            store.append(request([span(number)]))
            store.flush()
            clocks.let_pass(HOUR_S / 4)
        assert store.stats()["files"] == 40
        assert kept(store)[-1] == 40
        assert store.stats()["files"] < 16
        for hour in range(12):
            (oldest, *_), passed_h = kept(store) or [41], 10 + hour
            assert (passed_h - 11) * 4 <= oldest - 1 <= (passed_h - 10) * 4 + 1 or oldest == 41
            clocks.let_pass(HOUR_S)
        assert kept(store) == []


def test_one_pass_is_bounded(clocks: Clocks, opened: Callable[[], LocalStore], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MOST_DROPPED", 2)
    with opened() as store:
        for number in range(1, 6):
            store.append(request([span(number)]))
            store.flush()
            clocks.let_pass(1)
        clocks.let_pass(11 * HOUR_S)
        assert [store._change(lambda table: table.expire(10 * HOUR_S * 1000)) for _ in range(4)] == [2, 2, 1, 0]


def test_a_store_without_times_of_receipt_goes_by_when_its_files_were_written(tmp_path: Path) -> None:
    with LocalStore.open(tmp_path) as store:
        store.append(request([span(1)]))
    (file,) = delta.load(tmp_path / TABLE).files.values()
    add = {**file.add(), "modificationTime": 12_345}
    del add["tags"]["stagetrace.received"]
    assert File.of(json.loads(json.dumps(add))).received == (12_345, 12_345)


# --- starts in the future


def test_a_start_in_the_future_is_refused(tmp_path: Path) -> None:
    """The span, not its request; for every reader, and after the store was opened again."""
    now = time.time_ns()
    good, late = [span(1, start=now), span(2, start=now + HOUR // 2)], [span(3, start=now + 2 * HOUR)]
    with LocalStore.open(tmp_path) as store:
        appended = store.append(request([*good, *late, span(4, start=2**64 - 1)]))
        assert (appended.accepted, appended.rejected, appended.reason) == (2, 2, "a span starts in the future")
        assert store.append(request(late)).accepted == 0
        with store.reader() as inside, LocalReader.open(tmp_path) as outside:
            assert ids(inside) == ids(outside) == [1, 2]
        segments = {path.name: path.read_bytes() for path in (tmp_path / "wal").iterdir()}
        assert segments
    (tmp_path / TABLE / delta.LOG / f"{1:020d}.json").unlink()  # as if it had been killed before
    for name, content in segments.items():
        (tmp_path / "wal" / name).write_bytes(content)
    with LocalStore.open(tmp_path) as store, store.reader() as reader:
        assert ids(reader) == [1, 2]


@pytest.mark.parametrize("step_s", [YEAR_S, -YEAR_S])
def test_whichever_clock_is_ahead_tells_the_future(
    clocks: Clocks, opened: Callable[[], LocalStore], step_s: int
) -> None:
    """Spans of now are not refused because the system's clock was set back, or was behind when the store was opened."""
    with opened() as store:
        clocks.set_ahead(step_s)
        assert store.append(request([span(1, start=time.time_ns())])).accepted == 1
        assert store.append(request([span(2, start=time.time_ns() + max(0, step_s) * 10**9)])).accepted == 1
