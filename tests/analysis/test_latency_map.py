"""The cells of the heat map, what distinguishes a box of them, and the rank of one request among others."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from answers.made import MS, NOON, Made, reading, store
from stagetrace.analysis import cases, latency_map
from stagetrace.analysis.cases import Box
from stagetrace.analysis.diagnosis import diagnose, profiles
from stagetrace.analysis.estimates import Sample
from stagetrace.analysis.latency_map import Rank, Ranks, ask_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from stagetrace.store.base import Relations

S = 10**9
BOX = Box(NOON + 300 * S, NOON + 900 * S, 60.0, 1e9)


def requests(*, planted: bool = True) -> Iterator[Made]:
    """Yield a request a second; from 300 to 900 s on, those of region eu take long, judged or not."""
    chance = random.Random(11)
    for number in range(1, 1501):
        region = chance.choice(["eu", "us", "us"])
        slow = region == "eu" if planted else chance.random() < 0.3
        took = chance.uniform(70, 300) if slow and 300 <= number < 900 else chance.uniform(5, 45)
        yield Made(
            number,
            NOON + number * S,
            {"preprocess": 1.0, "inference": took},
            within_ms=50 if number % 5 else None,
            route=chance.choice(["/predict", "/embed"]),
            attributes={"region": region, "shard": chance.choice("abcdef")},
        )


@pytest.fixture(scope="module")
def made() -> list[Made]:
    return list(requests())


@pytest.fixture(scope="module")
def relations(made: list[Made], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relations]:
    with reading(store(tmp_path_factory.mktemp("map") / "store", made)) as found:
        yield found


def test_each_request_is_in_the_cell_of_its_start_and_duration(made: list[Made], relations: Relations) -> None:
    found = latency_map.ask(relations, NOON, NOON + 1600 * S)
    times = found.times_ns
    expected: dict[tuple[int, int], list[int]] = {}
    for one in made:
        column = int(np.searchsorted(times, one.start_unix_nano, side="right")) - 1
        row = int(np.searchsorted(found.edges_ms, round(one.took_ms * MS) / MS, side="right")) - 1
        counts = expected.setdefault((column, row), [0, 0])
        counts[0] += 1
        counts[1] += one.word == "breach"
    assert {(one.column, one.row): [one.requests, one.breaches] for one in found.cells} == expected
    assert found.is_judged
    assert found.requests == found.sample.rows == 1500
    assert times[0] == NOON
    assert NOON + 1600 * S <= times[-1] < NOON + 1600 * S + found.width_ns
    assert len(times) <= latency_map.COLUMNS + 1


def test_thresholds_are_lines_the_most_frequent_first(relations: Relations) -> None:
    found = latency_map.ask(relations, NOON, NOON + 1600 * S)
    (line,) = found.lines
    assert (line.threshold_ms, found.thresholds) == (50, 1)
    assert {*line.objectives} == {"POST /predict within 50ms", "POST /embed within 50ms"}


def test_a_threshold_of_another_bound_than_the_duration_is_no_line(tmp_path: Path) -> None:
    """A breach by `first_chunk` carries what that allows."""
    late = {"sla.threshold_ms": 5.0, "sla.breach.promise": "first_chunk"}
    made = [
        *(Made(number, NOON + number * S, within_ms=50) for number in range(1, 9)),
        Made(9, NOON, within_ms=50, verdict="breach", attributes=late),
        Made(10, NOON, route="/slow", within_ms=1),
    ]
    with reading(store(tmp_path / "store", made)) as some:
        found = latency_map.ask(some, NOON, NOON + 10 * S)
    assert [line.threshold_ms for line in found.lines] == [50, 1]


def spread() -> Sequence[Made]:
    """Return requests of durations from none to a day."""
    return [
        Made(number, NOON + number * MS, duration_ms=2.0 ** (number - 25) * (number > 1)) for number in range(1, 52)
    ]


def test_rows_are_bounded_whatever_the_durations(tmp_path: Path) -> None:
    with reading(store(tmp_path / "store", spread())) as some:
        found = latency_map.ask(some, NOON, NOON + S)
    assert found.requests == 51
    assert len(found.edges_ms) - 1 <= latency_map.ROWS
    assert found.edges_ms[0] == 0
    assert found.edges_ms[-1] > 2.0**26


def test_a_window_that_is_empty_but_for_a_moment_shows_that_moment(relations: Relations) -> None:
    found = latency_map.ask(relations, 0, NOON + 86_400 * S)
    assert found.is_narrowed
    assert NOON <= found.times_ns[0] <= NOON + 2 * S
    assert found.requests == 1500
    assert not latency_map.ask(relations, NOON, NOON + 2000 * S).is_narrowed


def test_requests_ahead_of_our_clock_are_in_the_picture(relations: Relations) -> None:
    assert latency_map.ask(relations, NOON, NOON + 1400 * S).requests == 1500


def test_without_a_request_there_is_no_cell(tmp_path: Path) -> None:
    with reading(store(tmp_path / "store", [])) as none:
        found = latency_map.ask(none, NOON, NOON + S)
    assert (found.cells, found.edges_ms, found.quantile(0.95)) == ((), (), None)


def test_a_quantile_is_the_edge_below_it(made: list[Made], relations: Relations) -> None:
    found = latency_map.ask(relations, NOON, NOON + 1600 * S)
    exact = float(np.quantile([one.took_ms for one in made], 0.95))
    edge = found.quantile(0.95)
    assert edge == max(one for one in found.edges_ms if one <= exact)


@pytest.mark.parametrize("length", [1, S, 90 * S, 3600 * S, 86_400 * S, 10 * 365 * 86_400 * S, 10**18])
def test_columns_are_enough_and_not_too_many(length: int) -> None:
    assert -(-length // latency_map.width_of(length)) < latency_map.COLUMNS


def test_an_attribute_that_the_box_has_more_often_is_found(made: list[Made], relations: Relations) -> None:
    found = cases.ask_box(relations, BOX)
    inside = [one for one in made if BOX.since_ns <= one.start_unix_nano < BOX.until_ns and one.took_ms >= 60]
    assert (found.breaches, found.good) == (len(inside), 1500 - len(inside))
    assert {row["trace_id"] for row in found.rows[: len(inside)]} == {f"{one.number:032x}" for one in inside}
    diagnosis = diagnose(found)
    (one,) = diagnosis.findings
    assert one.contrast.values == {"region": "eu"}
    assert one.contrast.breached == len(inside)
    assert diagnosis.stages[0].stage == "inference"


def test_nothing_is_found_where_nothing_distinguishes_the_box(tmp_path: Path) -> None:
    with reading(store(tmp_path / "store", requests(planted=False))) as noise:
        assert diagnose(cases.ask_box(noise, BOX)).findings == ()


@pytest.mark.thorough
def test_a_box_of_exactly_the_breaches_is_what_causes_compares(tmp_path: Path) -> None:
    judged = (replace(one, within_ms=50) for one in requests())
    with reading(store(tmp_path / "store", judged)) as some:
        by_verdict, by_box = cases.ask(some), cases.ask_box(some, Box(0, 2**63 - 1, 50.0, 1e300))
    assert by_verdict.breaches > 100
    assert diagnose(by_box) == diagnose(by_verdict)


def test_a_sample_of_either_side_stands_for_all_of_it(relations: Relations) -> None:
    whole, some = cases.ask_box(relations, BOX), cases.ask_box(relations, BOX, most=100)
    assert len(some.rows) < 400
    assert some.weights[some.breached].sum() == pytest.approx(whole.breaches)
    assert some.weights[~some.breached].sum() == pytest.approx(whole.good)


def test_an_empty_side_is_no_error(relations: Relations) -> None:
    for box in (Box(0, 1, 0.0, 1.0), Box(0, 2**63 - 1, 0.0, 1e300)):
        found = cases.ask_box(relations, box)
        assert min(found.breaches, found.good) == 0
        assert len(found.rows) == 1500
        assert diagnose(found).findings == ()


def test_the_longest_of_a_box_or_of_the_breaches(made: list[Made], relations: Relations) -> None:
    inside = [one for one in made if BOX.since_ns <= one.start_unix_nano < BOX.until_ns and one.took_ms >= 60]
    breaches = [one for one in made if one.word == "breach"]
    for box, some in ((BOX, inside), (None, breaches)):
        expected = sorted(some, key=lambda one: -one.took_ms)[:5]
        found = cases.longest(relations, box, 5)
        assert [row["trace_id"] for row in found] == [f"{one.number:032x}" for one in expected]


def test_profiles_have_the_shares_of_both_sides(relations: Relations) -> None:
    first, *_, last = profiles(cases.ask_box(relations, BOX))
    assert (first.key, first.shares[0].value, first.shares[0].inside) == ("region", "eu", 1.0)
    assert 0 < first.shares[0].outside < 0.5
    assert last.distance < first.distance


# --- Ranks of one request among others: of each part, and by weight.


def ranks(folder: Path, requests: list[Made], took_ms: float, stages: dict[str, float]) -> Ranks:
    with reading(store(folder, requests)) as relations:
        return ask_ranks(relations, took_ms, stages)


def test_a_rank_is_the_share_that_took_less(tmp_path: Path) -> None:
    made = [Made(n, NOON + n, {"inference": float(n), **({"queue": 1.0} if n <= 19 else {})}) for n in range(1, 101)]
    found = ranks(tmp_path / "store", made, 98.0, {"queue": 0.5, "inference": 98.0, "tokenize": 1.0})
    request, queue, inference = found.ranks
    assert (request.part, request.below, request.stored, request.label) == ("request", 0.97, 100, "p97")
    assert request.median_ms == pytest.approx(51, rel=0.03)
    assert (queue.part, queue.below, queue.median_ms, queue.stored, queue.label) == ("queue", None, None, 19, None)
    assert (inference.part, inference.below) == ("inference", 0.97)


def test_sampled_requests_count_by_weight(tmp_path: Path) -> None:
    """A breach stands for itself; each of the twenty good ones, of which one in four was kept, for four."""
    made = [Made(n, NOON + n, {"inference": 10.0}, within_ms=50, probability=0.25) for n in range(1, 21)]
    late = [Made(n, NOON + n, {"inference": 90.0}, within_ms=50, probability=0.25) for n in range(21, 41)]
    found = ranks(tmp_path / "store", [*made, *late], 90.0, {"inference": 90.0})
    assert found.ranks[0].below == pytest.approx(80 / 100)
    assert found.sample.is_estimate


def test_a_label_never_promises_more_than_there_is() -> None:
    def label(below: float) -> str | None:
        return Rank("request", 1.0, below, 1.0, 20).label

    assert [label(one) for one in (0.0, 0.979, 0.99, 0.9919, 0.99999, 1.0)] == [
        "p0",
        "p97",
        "p99",
        "p99.1",
        "p99.9",
        "p99.9",
    ]


def test_what_is_unusual_exceeds_its_median() -> None:
    """By at least a tenth of what the worst one does."""
    ranks = [
        Rank(part, took, 0.5, median, 40)
        for part, took, median in (
            ("request", 200.0, 90.0),
            ("queue", 20.0, 5.0),
            ("preprocess", 10.0, 9.5),
            ("inference", 100.0, 10.0),
            ("postprocess", 1.0, 3.0),
            ("handler", 9.0, None),
        )
    ]
    found = Ranks(tuple(ranks), Sample(40, is_estimate=False, is_unknown=False)).unusual
    assert [one.part for one in found] == ["inference", "queue"]
