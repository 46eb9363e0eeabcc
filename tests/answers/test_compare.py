"""`stagetrace compare` over data whose differences are known."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from answers.made import EVER, MS, NOON, Made, lines, store
from cli.running import answered, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ask = partial(answered, "compare", *EVER, "--store")
HOUR_MS = 3_600_000


def requests(seed: int, count: int, version: str, factor: float = 1.0, **more: Any) -> Iterator[Made]:
    """Yield requests of which the inference takes `factor` times as long as in version 2."""
    rng = np.random.default_rng([seed, int(version)])
    for place in range(count):
        took = {"preprocess": float(rng.lognormal(1, 0.3)), "inference": float(rng.lognormal(3, 0.4) * factor)}
        number = int(version) * 1_000_000 + place + 1
        start = NOON + int(version) * HOUR_MS * MS + place * MS
        yield Made(number, start, took, model="churn", version=version, **more)


def mixed(version: str, large: float, count: int = 1500) -> Iterator[Made]:
    """Yield small requests of about 10 ms and, as a share, large ones of about 100 ms: alike in both versions."""
    rng = np.random.default_rng(int(version))
    for place in range(count):
        is_large = bool(rng.random() < large)
        took = {"inference": float(rng.lognormal(4.6 if is_large else 2.3, 0.2))}
        size = {"http.request.body.size": 50_000 if is_large else 100}
        yield Made(int(version) * 100_000 + place, NOON + place * MS, took, model="m", version=version, attributes=size)


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Made]]:
    """Give a store of three versions, of which the newest is 40 % slower."""
    made = [*requests(1, 50, "1"), *requests(1, 2000, "2"), *requests(1, 2000, "3", 1.4)]
    return store(tmp_path_factory.mktemp("compare") / "store", made), made


@pytest.fixture(scope="module")
def other_mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("compare") / "mix", [*mixed("1", 0.1), *mixed("2", 0.4)])


def test_the_newest_two_versions_are_compared(slower: tuple[Path, list[Made]]) -> None:
    found = ask(slower[0])
    assert found["complete"] is True
    assert (found["a"]["name"], found["b"]["name"]) == ("version 2", "version 3")
    assert (found["a"]["requests"], found["b"]["stored"]) == (2000, 2000)
    took = {v: [one.took_ms for one in slower[1] if one.version == v] for v in "23"}
    for one in found["quantiles"]:
        values = [float(np.quantile(took[v], one["q"])) for v in "23"]
        assert [one["a_ms"], one["b_ms"]] == pytest.approx(values, rel=3e-3)
        assert one["difference"] == pytest.approx(values[1] / values[0] - 1, abs=5e-3)
        assert one["raw"]["interval"] == one["interval"]
    p50 = found["quantiles"][0]
    assert 0 < p50["interval"][0] < p50["difference"] < p50["interval"][1]
    assert found["sentence"].startswith("Model churn version 3 is ")
    assert "slower at p" in found["sentence"]
    assert "than version 2, mostly in inference" in found["sentence"]
    sure = {(part["stage"]) for part in found["stages"] if part["quantiles"][0]["interval"][0] > 0}
    assert sure == {"inference"}
    assert found["gate"] is None


def test_a_picture_can_be_drawn(slower: tuple[Path, list[Made]]) -> None:
    """Both histograms have the same edges; each side's selection is there."""
    found = ask(slower[0])
    shape = found["histogram"]
    edges = shape["edges_ms"]
    assert len(edges) - 1 == len(shape["a"]) == len(shape["b"]) <= 60
    for version, name in (("2", "a"), ("3", "b")):
        took = [one.took_ms for one in slower[1] if one.version == version]
        assert edges[0] <= min(took)
        assert max(took) <= edges[-1]
        assert shape[name] == pytest.approx(np.histogram(took, edges)[0])
        assert found[name]["selection"]["segments"] == {"ml.model.version": version}
        assert found[name]["selection"]["model"] == "churn"


def test_a_stage_that_surely_differs_is_named_where_the_whole_does_not(tmp_path: Path) -> None:
    """Inference takes eight times as long, which a queue hides in the whole request."""
    chance = np.random.default_rng(5)
    made = [
        Made(number, stages={"queue": chance.lognormal(3, 1.5), "inference": chance.lognormal(took, 0.1)}, version=v)
        for number, (v, took) in enumerate([("1", 0.0), ("2", 2.08)] * 300, 1)
    ]
    found = ask(store(tmp_path / "store", made), "--a", "version=1", "--b", "version=2")
    assert found["sentence"].startswith("Not enough requests to tell ")
    assert "; but inference is " in found["sentence"]
    assert " slower at p" in found["sentence"]
    assert " ms ms" not in found["sentence"]


def test_the_other_way_round_it_is_faster(slower: tuple[Path, list[Made]]) -> None:
    found = ask(slower[0], "--a", "version=3", "--b", "version=2", "--quantiles", "p50")
    assert " faster at p50 than version 3" in found["sentence"]
    assert found["quantiles"][0]["interval"][1] < 0


@pytest.mark.parametrize(
    ("gates", "state", "code"),
    [
        (["p50:+5%"], "fail", 1),
        (["p50:+100%"], "pass", 0),
        (["p50:+35%"], "undecided", 2),
        (["p50:+100%", "p99.9:+1000%"], "undecided", 2),
        (["p50:+5%", "p99.9:+5%"], "fail", 1),
    ],
)
def test_a_gate_fails_passes_or_is_undecided(
    gates: list[str], state: str, code: int, slower: tuple[Path, list[Made]]
) -> None:
    options = [part for gate in gates for part in ("--gate", gate)]
    found = ask(slower[0], "--a", "version=2", "--b", "version=3", *options, code=code)
    assert found["gate"] == state
    assert {"fail": "fails", "pass": "passes", "undecided": "undecided"}[state] in found["sentence"]


def test_a_gate_is_not_green_on_no_data(slower: tuple[Path, list[Made]]) -> None:
    found = ask(slower[0], "--a", "version=1", "--b", "version=3", "--gate", "p99:+5%", code=2)
    assert found["gate"] == "undecided"
    assert found["enough_data"] is False
    assert found["needed"] >= 900
    assert found["quantiles"][2]["interval"][0] is None


def test_needed_is_about_enough(slower: tuple[Path, list[Made]]) -> None:
    """Of two halves alike, the number that it asks for brings the interval down to what was asked for."""
    first, second = list(requests(5, 1000, "2")), list(requests(6, 1000, "3"))
    more, other = list(requests(7, 5000, "2")), list(requests(8, 5000, "3"))
    found = []
    for pair, folder in (((first, second), "few"), ((more, other), "many")):
        path = store(slower[0].parent / folder, [*pair[0], *pair[1]])
        found.append(ask(path, "--quantiles", "p50", "--resolution", "6%"))
    assert found[0]["enough_data"] is False
    assert 1000 < found[0]["needed"] < 5000
    assert (found[1]["enough_data"], found[1]["needed"]) == (True, None)


def test_a_change_of_mix_is_no_change_of_version(other_mix: Path) -> None:
    found = ask(other_mix)
    raw = [one["raw"]["interval"] for one in found["quantiles"][:2]]
    assert raw[0][0] > 0
    assert all(one["interval"][0] <= 0 <= one["interval"][1] for one in found["quantiles"][:2])
    assert found["adjusted"] is True
    assert found["mix_differs"] is True
    assert "because both sides had different mixes of requests" in found["sentence"]
    assert {one["input_size"]: one["a_requests"] + one["b_requests"] for one in found["strata"]}.keys() == {3, 7}


def test_as_they_are_the_mix_shows(other_mix: Path) -> None:
    found = ask(other_mix, "--stratify", "none")
    assert (found["adjusted"], len(found["strata"])) == (False, 1)
    assert found["quantiles"][0]["interval"][0] > 0
    again = ask(other_mix, "--stratify", "http.request.body.size")
    assert again["quantiles"][0]["interval"][0] <= 0
    assert {one["http.request.body.size"] for one in again["strata"]} == {"50000", "100"}


def test_requests_without_their_like_are_excluded_and_counted(tmp_path: Path) -> None:
    made = [*requests(1, 300, "1", route="/a"), *requests(1, 300, "2", route="/a")]
    made += requests(2, 100, "3", route="/new", attributes={"ml.model.version": "2"})
    found = ask(store(tmp_path / "store", made))
    assert found["left_out"] == {"a": 0, "b": pytest.approx(0.25)}
    assert [one["b_requests"] for one in found["strata"]] == [300, 100]
    nothing = ask(store(tmp_path / "apart", [*requests(1, 300, "1", route="/a"), *requests(1, 300, "2", route="/b")]))
    assert "no requests alike" in nothing["sentence"]
    assert (nothing["enough_data"], nothing["quantiles"][0]["difference"]) == (False, None)


def test_sampled_requests_count_for_those_they_stand_for(tmp_path: Path) -> None:
    """Breaches are all kept, of the others one in four: unweighted, version 2 would seem slower by far."""
    rng = np.random.default_rng(9)
    whole = [one for v in "12" for one in requests(10, 3000, v, within_ms=30.0)]
    kept = []
    for one in whole:
        chance = 0.25 if one.version == "2" else 1.0
        if one.word == "breach" or rng.random() < chance:
            kept.append(Made(**{**one.__dict__, "probability": chance}))
    found = ask(store(tmp_path / "store", kept), "--quantiles", "p50,p90")
    assert found["estimated"] is True
    assert found["b"]["requests"] == pytest.approx(3000, rel=0.05)
    assert found["b"]["stored"] < 1700
    for one in found["quantiles"]:
        truth = [np.quantile([m.took_ms for m in whole if m.version == v], one["q"]) for v in "12"]
        assert [one["a_ms"], one["b_ms"]] == pytest.approx(truth, rel=0.05)
        assert one["interval"][0] <= 0 <= one["interval"][1]


def test_periods_files_and_attributes_make_sides(slower: tuple[Path, list[Made]], tmp_path: Path) -> None:
    folder, made = slower
    turn = NOON + 3 * HOUR_MS * MS
    first = f"period={time_of(NOON + 2 * HOUR_MS * MS)}..{time_of(turn)}"
    second = f"period={time_of(turn)}..{time_of(turn + HOUR_MS * MS)}"
    wanted = ask(folder)["quantiles"]
    assert ask(folder, "--a", first, "--b", second)["quantiles"] == wanted
    paths = [lines(tmp_path / f"{v}.jsonl", (one for one in made if one.version == v)) for v in "23"]
    found = ask(folder, "--a", f"file={paths[0]}", "--b", f"store=file://{paths[1]}")
    assert found["quantiles"] == wanted
    assert ask(folder, "--a", "ml.model.version=2", "--b", f"file={paths[1]}")["quantiles"] == wanted


def test_without_two_versions_it_names_what_to_give(tmp_path: Path) -> None:
    found = ask(store(tmp_path / "store", requests(1, 20, "1")), code=2)
    assert "name two sides, as --a version=2 --b version=3" in found["sentence"]
    assert (found["enough_data"], found["needed"]) == (False, None)


def test_versions_of_services_are_versions_too(tmp_path: Path) -> None:
    made = [
        Made(n, NOON + n * MS, {"inference": 5.0 + n % 7}, resource={"service.version": f"v{1 + n // 201}"})
        for n in range(1, 401)
    ]
    folder = store(tmp_path / "store", made)
    assert [ask(folder)[side]["name"] for side in "ab"] == ["version v1", "version v2"]
    assert ask(folder, "--a", "version=v2", "--b", "version=v1")["b"]["stored"] == 200
