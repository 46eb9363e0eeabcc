"""What is wrong now: the worst objective, its main stage and cause, since when, and outcomes over time."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from answers.made import MS, NOON, Made, reading, store
from stagetrace.analysis import wrong_now
from stagetrace.analysis.wrong_now import BUCKETS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MINUTE = 60_000 * MS
HOUR = 60 * MINUTE


def found(folder: Path, requests: Iterable[Made], until: int = NOON + HOUR) -> wrong_now.Found:
    with reading(store(folder / "store", requests)) as relations:
        return wrong_now.ask(relations, NOON, until)


def traffic(late: Iterable[int]) -> Iterator[Made]:
    """Yield a request each ten seconds of `/predict`, late in some minutes, and as many of `/embed`, one of it late."""
    number = 0
    for place in range(360):
        for route in ("/predict", "/embed"):
            number += 1
            is_late = place // 6 in late if route == "/predict" else place == 100
            stages = {"queue": 80.0, "inference": 20.0} if is_late else {"queue": 1.0, "inference": 20.0}
            cause = "pool_wait" if number % 3 else "cpu_wait"
            yield Made(number, NOON + place * 10_000 * MS, stages, route=route, within_ms=50, cause=cause)


def test_the_worst_objective_is_first_with_what_its_breaches_have(tmp_path: Path) -> None:
    made = list(traffic(range(20, 25)))
    answer = found(tmp_path, made)
    assert [(one.route, one.missed) for one in answer.lines] == [("/predict", True), ("/embed", False)]
    worst = answer.missed[0]
    assert (worst.counts.judged, worst.counts.breaches) == (360, 30)
    late = [one for one in made if one.word == "breach" and one.route == "/predict"]
    causes = Counter(one.cause for one in late)
    assert {(one.kind, one.breaches) for one in worst.losses} == {
        (Kind("queue", cause), count) for cause, count in causes.items()
    }
    assert worst.losses[0].over_ms == pytest.approx(50 * worst.losses[0].breaches)
    assert worst.excess == pytest.approx(30 - 3.6)


@pytest.mark.parametrize(
    ("late", "first", "last", "breaches", "is_over"),
    [
        (range(50, 60), 50 * MINUTE, 60 * MINUTE - 10_000 * MS, 60, False),
        (range(20, 25), 20 * MINUTE, 25 * MINUTE - 10_000 * MS, 30, True),
        ((3, 20, 24), 20 * MINUTE, 25 * MINUTE - 10_000 * MS, 12, True),  # not further apart than five minutes
        ((3, 20, 27), 27 * MINUTE, 28 * MINUTE - 10_000 * MS, 6, True),
    ],
)
def test_the_latest_stretch_with_too_many_breaches(
    tmp_path: Path, late: Iterable[int], first: int, last: int, breaches: int, is_over: bool
) -> None:
    latest = found(tmp_path, traffic(late)).missed[0].latest
    assert latest == (NOON + first, NOON + last, breaches, is_over)


def test_a_few_scattered_breaches_have_no_beginning(tmp_path: Path) -> None:
    answer = found(tmp_path, traffic(()))
    assert answer.missed == []
    assert [one.latest for one in answer.lines] == [None, None]
    assert [one.all_breaches for one in answer.lines] == [(NOON + 1000_000 * MS,) * 2 + (1, True), None]


def test_outcomes_over_time_add_up(tmp_path: Path) -> None:
    made = list(traffic(range(20, 25)))
    made += [Made(10_000 + place, NOON + place * MINUTE, within_ms=None) for place in range(10)]  # not judged
    made.append(Made(20_000, NOON + MINUTE, within_ms=50, verdict="excluded"))
    answer = found(tmp_path, made)
    minutes = Counter((one.start_unix_nano - NOON) // MINUTE for one in made)
    assert answer.width_ns == MINUTE
    assert answer.since_unix_nano == NOON
    assert answer.requests == tuple(minutes[place] for place in range(60))
    assert answer.breaches == tuple(map(sum, zip(*answer.kinds.values(), strict=True)))
    assert sum(answer.breaches) == 31
    assert (answer.counts.requests, answer.counts.judged, answer.counts.excluded) == (731, 720, 1)
    assert [one.kind.cause for one in answer.losses] == sorted(
        {one.kind.cause for one in answer.losses}, key=lambda cause: -sum(answer.kinds[Kind("queue", cause)])
    )


def test_requests_of_a_sample_are_weighted_and_breaches_are_not(tmp_path: Path) -> None:
    made = [Made(number, NOON, within_ms=50, probability=0.25) for number in range(1, 11)]
    made += [Made(20, NOON, {"inference": 90.0}, within_ms=50, probability=0.25)]
    answer = found(tmp_path, made)
    assert answer.requests[0] == 41
    assert answer.breaches[0] == 1
    (line,) = answer.lines
    assert line.attained is not None
    assert line.attained.is_estimate
    assert line.attained.value == pytest.approx(40 / 41)


def test_what_is_beyond_the_limits_is_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_now, "OBJECTIVES", 1)
    monkeypatch.setattr(wrong_now, "KINDS", 1)
    answer = found(tmp_path, traffic(range(20, 25)))
    assert answer.has_rest
    assert [one.route for one in answer.lines] == ["/predict"]
    assert answer.counts.requests == 720
    assert {kind.is_rest for kind in answer.kinds} == {False, True}
    assert sum(answer.breaches) == 31


def test_a_window_has_sixty_buckets_at_most_but_for_the_one_that_it_cuts() -> None:
    chance = random.Random(1)
    for _ in range(500):
        since = chance.randrange(10**18, 2 * 10**18)
        until = since + round(10 ** chance.uniform(6, 17))
        width = wrong_now.width_of(since, until)
        assert (until - 1) // width - since // width <= BUCKETS


def test_clocks_that_run_ahead_do_not_make_the_picture_longer_without_end(tmp_path: Path) -> None:
    answer = found(tmp_path, [Made(1, NOON), Made(2, NOON + 1000 * HOUR)])
    assert len(answer.requests) <= 2 * BUCKETS + 1
    assert sum(answer.requests) == 2
