"""What services count themselves comes out as it went in: restarts, resent and late points, edges of the window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stagetrace.analysis.estimates import Counted
from stagetrace.errors import StoreError
from stagetrace.store.local import counts
from stagetrace.store.local.counts import CountStore, Point, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

S = 1_000_000_000
T = 1_700_000_000 * S
GOOD = ("/x", "* within 1s", "good")


def point(
    value: int, at: float, *, start: float = 0, instance: str = "a", delta: bool = False, verdict: str = "good"
) -> Point:
    """Return a point at so many seconds after T."""
    return Point("api", instance, T + round(start * S), "/x", "* within 1s", verdict, value, T + round(at * S), delta)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CountStore]:
    opened = CountStore(tmp_path)
    yield opened
    opened.close()


def counted(folder: Path, since: float, until: float) -> Counted:
    (found,) = read(folder, T + round(since * S), T + round(until * S))
    return found


def test_a_store_without_counts_has_no_file(tmp_path: Path, store: CountStore) -> None:
    assert read(tmp_path, 0, T) == []
    assert [*tmp_path.iterdir()] == []
    store.append([])
    assert read(tmp_path, 0, T) == []


@pytest.mark.parametrize("delta", [False, True])
def test_all_of_a_process_is_counted(tmp_path: Path, store: CountStore, delta: bool) -> None:
    values = [10, 0, 15, 20] if delta else [10, 10, 25, 45]
    for number, value in enumerate(values):
        start = number * 60 if delta else 0
        store.append([point(value, 60 * (number + 1), start=start, delta=delta)])
    assert counted(tmp_path, -100, 1000) == Counted("api", T, T + 240 * S, is_exact=True, counts={GOOD: 45})
    assert counted(tmp_path, 60, 1000).counts == {GOOD: 35}
    assert counted(tmp_path, 90, 1000).counts == {GOOD: 35}
    assert counted(tmp_path, 120, 180).counts == {GOOD: 15}
    assert counted(tmp_path, 120, 180).is_exact


def test_between_two_points_it_is_in_proportion_and_not_exact(tmp_path: Path, store: CountStore) -> None:
    store.append([point(100, 60), point(200, 120)])
    assert counted(tmp_path, 90, 1000) == Counted("api", T + 90 * S, T + 120 * S, is_exact=False, counts={GOOD: 50})


@pytest.mark.parametrize("delta", [False, True])
def test_a_point_that_comes_again_or_late_changes_nothing(tmp_path: Path, store: CountStore, delta: bool) -> None:
    first, second = point(10, 60, delta=delta), point(25, 120, start=60 * delta, delta=delta)
    for one in (first, second, first, second, second):
        store.append([one])
    assert counted(tmp_path, -1, 1000).counts == {GOOD: 35 if delta else 25}


def test_a_restart_and_a_second_process_add_up(tmp_path: Path, store: CountStore) -> None:
    store.append([point(10, 60), point(12, 65)])
    store.append(
        [point(5, 130, start=70), point(7, 130, start=1, instance="b"), point(3, 130, start=70, verdict="breach")]
    )
    found = counted(tmp_path, -1, 1000)
    assert found.counts == {GOOD: 24, ("/x", "* within 1s", "breach"): 3}
    assert (found.until_ns, found.is_exact) == (T + 130 * S, False)  # the first one may live yet
    store.append(
        [point(9, 300, start=70), point(7, 300, start=1, instance="b"), point(3, 300, start=70, verdict="breach")]
    )
    assert counted(tmp_path, -1, 1000).is_exact


def test_unchanged_counts_take_no_room(tmp_path: Path, store: CountStore) -> None:
    for number in range(50):
        store.append([point(10, 60 * number + 60)])
    (rows,) = store._connection.execute("SELECT count(*) FROM counts").fetchone()
    assert rows == 1
    assert counted(tmp_path, -1, 10_000).until_ns == T + 3000 * S


def test_old_ones_are_dropped_and_what_was_before_is_not_counted_anew(tmp_path: Path) -> None:
    """By when they were received: other services' clocks are a year ahead and behind."""
    now = [0]
    store = CountStore(tmp_path, retention_s=300, now=lambda: now[0])
    for number in range(20):
        now[0] = 60_000 * (number + 1)
        for service, years in (("ahead", 1), ("behind", -1)):
            wrong = point(100, 60 * (number + 1) + years * 365 * 86_400)._replace(service=service)
            store.append([wrong._replace(value=number)])
        store.append([point(100 * (number + 1), 60 * (number + 1))])
    rows = store._connection.execute("SELECT service, count(*) FROM counts GROUP BY 1 ORDER BY 1").fetchall()
    assert rows == [("ahead", 6), ("api", 6), ("behind", 6)]
    assert counted(tmp_path, 960, 2000).counts == {GOOD: 400}
    store.close()


def test_there_are_never_too_many(store: CountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MOST_ROWS", 10)
    monkeypatch.setattr(counts, "_LOOK_EACH", 1)
    for number in range(30):
        store.append([point(number + 1, number + 1)])
    (rows,) = store._connection.execute("SELECT count(*) FROM counts").fetchone()
    assert rows == 10


def test_what_is_no_database_is_refused_in_words(tmp_path: Path, store: CountStore) -> None:
    (tmp_path / counts.FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="file is not a database"):
        read(tmp_path, 0, T)
    with pytest.raises(StoreError, match="cannot store counts"):
        store.append([point(1, 1)])


def test_what_differs_in_other_attributes_adds_up_and_begins_when_its_process_has_not_counted_it_yet(
    tmp_path: Path, store: CountStore
) -> None:
    """A breach of another stage is a series of its own, whose first point is of the requests since the one before."""
    queue, inference = (point(1, 60, verdict="breach")._replace(rest=stage) for stage in ("queue", "inference"))
    store.append([queue])
    store.append([queue._replace(value=3, time_ns=T + 120 * S), inference._replace(value=5, time_ns=T + 120 * S)])
    breaches = {("/x", "* within 1s", "breach"): 8}
    assert counted(tmp_path, -1, 1000) == Counted("api", T, T + 120 * S, is_exact=True, counts=breaches)
    assert counted(tmp_path, 60, 120).counts == {("/x", "* within 1s", "breach"): 7}
    assert counted(tmp_path, 60, 120).is_exact
    assert counted(tmp_path, 0, 60) == Counted(
        "api", T, T + 60 * S, is_exact=True, counts={("/x", "* within 1s", "breach"): 1}
    )
