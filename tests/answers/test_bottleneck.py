"""`stagetrace bottleneck` over stores and files of made requests, against numpy over these requests."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from answers.made import EVER, MS, NOON, Made, lines, store
from cli.running import answered, printed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

asked = partial(answered, "bottleneck", *EVER, "--store")
RANKS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def requests(count: int = 3000) -> list[Made]:
    """Return requests whose tail is inference, and whose median preprocessing; a third have one more stage."""
    random = np.random.default_rng(18)
    made = []
    for number in range(1, count + 1):
        stages = {
            "queue": float(random.exponential(2)),
            "preprocess": float(random.normal(12, 1)),
            "inference": float(random.lognormal(1.5, 1.1)),
        }
        if number % 3 == 0:
            stages["tokenize"] = float(random.exponential(3))
        model, tenant = ("churn", None)[number % 5 == 0], ("gold", "free")[number % 2]
        start = NOON + number * 100 * MS
        one = Made(number, start, stages, model=model, within_ms=60.0, attributes={"tenant.id": tenant})
        made.append(replace(one, with_stage_spans=number % 4 == 0))
    return made


ALL = requests()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("bottleneck") / "store", ALL)


def totals(made: Sequence[Made]) -> NDArray[np.float64]:
    return np.array([round(one.took_ms * MS) / MS for one in made])


def around(made: Sequence[Made], ranks: Sequence[float], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Return each stage's share of the whole time of the requests between two ranks, of which the outermost in part."""
    order = np.argsort(totals(made))
    weight = np.ones(len(made)) if weights is None else np.array(weights)[order]
    upto = np.concatenate([[0.0], np.cumsum(weight)])

    def between(times: NDArray[np.float64]) -> float:
        sums = np.concatenate([[0.0], np.cumsum(weight * times[order])])
        low, high = np.interp(np.array(ranks) * upto[-1], upto, sums)
        return float(high - low)

    names = {stage for one in made for stage in one.stages}
    whole = between(totals(made))
    return {name: between(np.array([one.stages.get(name, 0.0) for one in made])) / whole for name in names}


def shares(found: dict[str, Any], percentile: str) -> dict[str, float]:
    return {one["stage"]: one["share"][percentile] for one in found["stages"]}


def test_shares_are_those_of_the_requests_around_each_percentile(folder: Path) -> None:
    found = asked(folder)
    assert (found["requests"], found["stored"], found["estimated"]) == (3000, 3000, False)
    for percentile in RANKS:
        band = found["bands"][percentile]
        expected = around(ALL, band["ranks"])
        assert shares(found, percentile) == pytest.approx(expected, abs=0.01)
        assert sum(shares(found, percentile).values()) == pytest.approx(1, abs=1e-12)
        assert band["stored"] == pytest.approx((band["ranks"][1] - band["ranks"][0]) * 3000)
        for one in found["stages"]:
            low, high = one["interval"][percentile]
            assert 0 <= low <= one["share"][percentile] <= high <= 1
    assert [one["stage"] for one in found["stages"]] == ["inference", "preprocess", "queue", "tokenize"]
    assert found["queue_share"] == {percentile: shares(found, percentile)["queue"] for percentile in RANKS}


def test_what_shortening_brings_is_computed_anew(folder: Path) -> None:
    found = asked(folder)
    before = np.quantile(totals(ALL), [0.5, 0.95, 0.99])
    assert list(found["total_ms"].values()) == pytest.approx(before.tolist())
    for one in found["stages"]:
        less = totals(ALL) - 0.1 * np.array([request.stages.get(one["stage"], 0.0) for request in ALL])
        expected = 1 - np.quantile(less, [0.5, 0.95, 0.99]) / before
        assert list(one["what_if"].values()) == pytest.approx(expected.tolist())


def test_the_sentence_names_the_tail_the_median_and_what_to_do(folder: Path) -> None:
    found = asked(folder)
    tail, median = (max(shares(found, one).items(), key=lambda item: item[1]) for one in ("p99", "p50"))
    low, high = found["stages"][0]["interval"]["p99"]
    p50, p99 = found["total_ms"]["p50"], found["total_ms"]["p99"]
    expected = (
        f"At p99 ({p99:.2f} ms) inference takes {100 * tail[1]:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of the time, "
        f"at p50 ({p50:.2f} ms) preprocess {100 * median[1]:.0f} %; "
        f"10 % off inference would bring p99 down by {100 * found['stages'][0]['what_if']['p99']:.1f} %."
    )
    assert (tail[0], median[0]) == ("inference", "preprocess")
    assert found["sentence"] == expected
    command = ("bottleneck", "--store", folder, *EVER)
    shown = printed(*command)
    assert shown.splitlines()[0] == expected
    assert "█" in shown
    for form in ("markdown", "html"):
        assert expected in printed(*command, "--format", form).replace("\\[", "[").replace("\\]", "]")


def test_a_group_is_what_the_same_selection_is(folder: Path) -> None:
    found = asked(folder, "--by", "tenant.id", "--by", "model")["groups"]
    assert [(one["by"], one["requests"]) for one in found] == [
        ({"tenant.id": "free", "model": "churn"}, 1200),
        ({"tenant.id": "gold", "model": "churn"}, 1200),
        ({"tenant.id": "free", "model": None}, 300),
        ({"tenant.id": "gold", "model": None}, 300),
    ]
    alone = asked(folder, "--segment", "tenant.id=gold", "--model", "churn")
    for percentile in RANKS:
        assert shares(found[1], percentile) == pytest.approx(shares(alone, percentile))
    assert found[1]["total_ms"] == pytest.approx(alone["total_ms"])
    assert found[1]["stages"][0]["what_if"] == pytest.approx(alone["stages"][0]["what_if"])
    assert "/predict      3000" in printed("bottleneck", "--long", "--store", folder, *EVER, "--by", "path")


def test_critical_paths_are_those_of_the_newest_requests(folder: Path) -> None:
    """Those with stage spans divide by stage, the others are the entry span alone."""
    found = asked(folder)
    for percentile in RANKS:
        low, high = found["bands"][percentile]["ms"]
        chosen = [one for one in reversed(ALL) if low <= round(one.took_ms * MS) / MS <= high][:200]
        took: dict[str, float] = {}
        for one in chosen:
            for name, ms in one.stages.items() if one.with_stage_spans else ((one.name, one.took_ms),):
                took[name] = took.get(name, 0.0) + ms
        paths = found["critical_paths"][percentile]
        assert paths["requests"] == len(chosen)
        assert {one["name"]: one["ms"] for one in paths["spans"]} == pytest.approx(took, abs=0.01)
        assert sum(one["share"] for one in paths["spans"]) == pytest.approx(1)


def test_sampled_requests_count_for_what_they_stand_for(tmp_path: Path) -> None:
    """Of good requests one in ten is kept, of breaches each: by number the tail would be most of it."""
    # Not by length.
    kept = [replace(one, probability=0.1) for one in ALL if one.word == "breach" or one.number % 10 == 7]
    found = asked(store(tmp_path / "store", kept), "--by", "tenant.id")
    weight = np.array([1.0 if one.word == "breach" else 10.0 for one in kept])
    assert found["estimated"] is True
    assert found["requests"] == weight.sum()
    for group in (found, *found["groups"]):
        tenant = group.get("by", {}).get("tenant.id")
        places = [place for place, one in enumerate(kept) if tenant in (None, one.attributes["tenant.id"])]
        total, part = totals([kept[place] for place in places]), weight[places]
        order = np.argsort(total)
        below = np.cumsum(part[order]) / part.sum()
        quantiles = {key: total[order][np.searchsorted(below, rank - 1e-9)] for key, rank in RANKS.items()}
        quantiles |= {key: None for key, band in group["bands"].items() if band is None}
        assert group["total_ms"] == quantiles
    assert len(found["groups"]) == 2
    for percentile in RANKS:
        expected = around(kept, found["bands"][percentile]["ranks"], weight.tolist())
        assert shares(found, percentile) == pytest.approx(expected, abs=0.02)


def test_not_enough_data_gives_how_much_would_be(tmp_path: Path) -> None:
    few = asked(store(tmp_path / "few", ALL[:60]))
    assert few["needed"] == {"p50": 10, "p95": 40, "p99": 200}
    assert few["sentence"].endswith("not enough requests for p99 (60 requests, 200 for p99 would be enough).")
    assert {one["share"]["p99"] for one in few["stages"]} == {None}
    assert few["bands"]["p99"] is few["total_ms"]["p99"] is few["queue_share"]["p99"] is None
    fewer = asked(store(tmp_path / "fewer", ALL[:9]))
    assert fewer["sentence"] == "Not enough data: 9 requests, and 10 for p50, 40 for p95, 200 for p99 would be enough."
    assert fewer["stages"] == []


def test_two_stages_that_few_requests_do_not_distinguish_are_both_named(tmp_path: Path) -> None:
    """Of 300 requests nine wait: whether that is so at p99 nobody knows, and shortening it is what helps most."""
    some = [
        Made(number, NOON + number * MS, {"queue": 90.0 * (number % 40 == 5), "inference": 80.0 + number / 30})
        for number in range(1, 301)
    ]
    found = asked(store(tmp_path / "store", some))
    head, _, rest = found["sentence"].partition(", too few requests to know which takes more; at p50 ")
    assert head.startswith("At p99 (")
    assert "inference" in head
    assert "queue" in head
    best = max(found["stages"], key=lambda one: one["what_if"]["p99"])
    assert rest.endswith(f"; 10 % off {best['stage']} would bring p99 down by {100 * best['what_if']['p99']:.1f} %.")


def test_time_without_stages_is_a_row_of_its_own(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    some = [replace(one, duration_ms=one.took_ms + float(random.exponential(5))) for one in ALL[:400]]
    found = asked(lines(tmp_path / "spans.jsonl", some))
    named = {stage for one in some for stage in one.stages} | {"(no stage)"}
    assert {one["stage"] for one in found["stages"]} == named
    assert sum(shares(found, "p50").values()) == pytest.approx(1, abs=1e-12)
    ranks = found["bands"]["p50"]["ranks"]
    assert shares(found, "p50")["(no stage)"] == pytest.approx(1 - sum(around(some, ranks).values()), abs=0.02)
    bare = (replace(one, stages={}, duration_ms=one.took_ms, within_ms=None) for one in ALL[:400])
    none = asked(store(tmp_path / "none", bare))
    assert shares(none, "p99") == {"(no stage)": 1.0}
    assert none["sentence"].startswith("Nothing is known of where the ")


def test_the_critical_path_of_one_trace(folder: Path) -> None:
    made = ALL[-1]
    for given in (f"{made.number:032x}", "latest"):
        found = asked(folder, "--trace", given)
        assert found["trace_id"] == f"{made.number:032x}"
        path = found["critical_path"]
        ends = [made.start_unix_nano, *(one["end_unix_nano"] for one in path)]
        assert [one["start_unix_nano"] for one in path] == ends[:-1]
        assert ends[-1] == made.start_unix_nano + round(made.took_ms * MS)
        # The stages' lengths are rounded one by one, so that a ns at the end may be in none of them.
        assert [one["name"] for one in path if one["duration_ms"] > 0.001] == list(made.stages)
        assert len({one["span_id"] for one in path}) == len(path)
    most = max(made.stages.items(), key=lambda item: item[1])
    assert found["sentence"].startswith(
        f"shop {most[0]} is {100 * most[1] / made.took_ms:.0f} % of the critical path of shop POST"
    )
    drawn = printed("bottleneck", "--long", "--store", folder, "--trace", "latest")
    assert drawn.splitlines()[0] == found["sentence"]
    assert drawn.count("█·") >= 2


def test_the_critical_path_of_what_jaegers_page_downloads(tmp_path: Path) -> None:
    """Three services, one with a clock 10 s ahead; concurrent and touching calls, and a job that nothing waits for."""

    def one(
        number: int, service: int, start: int, end: int, kind: str, parent: int | None, how: str = "CHILD_OF"
    ) -> Any:
        above = [] if parent is None else [{"refType": how, "traceID": "ab", "spanID": f"{parent:x}"}]
        return {
            "traceID": "ab",
            "spanID": f"{number:x}",
            "operationName": f"op {number}",
            "references": above,
            "startTime": 1_772_366_400_000_000 + start,
            "duration": end - start,
            "tags": [{"key": "span.kind", "type": "string", "value": kind}],
            "logs": [],
            "processID": f"p{service}",
        }

    ahead = 10_000_000
    spans = [
        one(1, 1, 0, 1000, "server", None),
        one(2, 1, 100, 400, "internal", 1),
        one(3, 1, 400, 900, "client", 1),
        one(4, 1, 150, 600, "client", 1),  # beside the one that was waited for
        one(5, 2, ahead, ahead + 300, "server", 3),
        one(6, 2, ahead + 100, ahead + 200, "internal", 5),
        one(7, 3, 950, 990, "internal", 1, "FOLLOWS_FROM"),
    ]
    processes = {
        f"p{number}": {"serviceName": name, "tags": []} for number, name in enumerate(("shop", "users", "jobs"), 1)
    }
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"data": [{"traceID": "ab", "spans": spans, "processes": processes}]}))
    found = asked(path, "--trace", "latest")
    start = 1_772_366_400_000_000_000
    us = [
        (int(part["span_id"], 16), (part["start_unix_nano"] - start) // 1000, (part["end_unix_nano"] - start) // 1000)
        for part in found["critical_path"]
    ]
    first = [(1, 0, 100), (2, 100, 400), (3, 400, 500), (5, 500, 600), (6, 600, 700)]
    assert us == [*first, (5, 700, 800), (3, 800, 900), (1, 900, 1000)]
    moved = {(part["service"], part["by_ns"]) for part in found["adjusted"]}
    assert moved == {("users", (500 - ahead) * 1000)}
    text = printed("bottleneck", "--long", "--store", path, "--trace", "latest")
    assert "2 spans of users moved by up to -9999.50 ms: a clock was skewed." in text
