"""`stagetrace segments` over made requests: counts are exact, what was planted differs, and nothing else does."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from answers.made import EVER, MS, NOON, Made, kept, lines, store
from cli.running import answered, printed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

asked = partial(answered, "segments", "--store")


def requests(count: int = 2000, slow: str = "gold", **more: Any) -> Iterator[Made]:
    """Yield requests of four tenants, one of which has a slow model; large bodies are slow for all."""
    chance = random.Random(count)
    for number in range(1, count + 1):
        tenant = chance.choice(["gold", "silver", "free", None])
        size = chance.randrange(100, 100_000)
        took = {
            "preprocess": chance.uniform(1, 4) + (30 if size > 90_000 else 0),
            "inference": chance.lognormvariate(3, 0.3) * (1.7 if tenant == slow else 1),
        }
        attributes = {"tenant.id": tenant, "http.request.body.size": size}
        yield Made(number, NOON + number * MS, took, within_ms=45, attributes=attributes, **more)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("segments") / "store", requests())


def test_each_segment_is_counted_as_by_hand(planted: Path) -> None:
    found = asked(planted, *EVER)
    assert found["by"] == "tenant.id"
    assert {one["segment"] for one in found["segments"]} == {"gold", "silver", "free", None}
    for one in found["segments"]:
        mine = [each for each in requests() if each.attributes["tenant.id"] == one["segment"]]
        bad = [each for each in mine if each.word == "breach"]
        assert (one["requests"], one["breaches"], one["judged"]) == (len(mine), len(bad), len(mine))
        assert one["p99_ms"] == pytest.approx(np.quantile([each.took_ms for each in mine], 0.99), rel=0.02)
        assert one["excess_ms"] == pytest.approx(sum(each.took_ms - 45 for each in bad))
        shares = [sum(each.stages[stage] for each in mine) for stage in ("preprocess", "inference")]
        assert one["stages"]["inference"] == pytest.approx(shares[1] / sum(shares))
    assert sum(one["excess_share"] for one in found["segments"]) == pytest.approx(1)


def test_the_slow_tenant_is_named_and_what_it_would_gain(planted: Path) -> None:
    found = asked(planted, *EVER, "--by", "tenant.id")
    gold = next(one for one in found["segments"] if one["segment"] == "gold")
    assert found["sentence"].startswith("Requests with tenant.id gold miss their objective ")
    assert gold["q_value"] < 1e-6
    assert gold["latency_q_value"] < 1e-6
    assert gold["longer"]
    assert gold["fixed"]["stage"] == "inference"
    assert 0.4 < gold["fixed"]["breaches_avoided"] <= 1
    assert "(none)" in printed("segments", "--long", "--store", planted, *EVER)
    assert "<svg" in printed("segments", "--long", "--store", planted, *EVER, "--format", "html")


def test_sizes_are_ranges_in_their_order(planted: Path) -> None:
    found = asked(planted, *EVER, "--by", "http.request.body.size")
    assert found["ranges"]
    assert sum(one["requests"] for one in found["segments"]) == pytest.approx(2000)
    names = [one["segment"] for one in found["segments"]]
    assert names[0].split(" to ")[0].isdigit()
    assert all(name.startswith("over ") for name in names[1:])
    worst = max(found["segments"], key=lambda one: one["breach_share"])
    assert worst["segment"] in names[-2:]
    assert worst["fixed"]["stage"] == "preprocess"


def test_nothing_differs_where_nothing_does(tmp_path: Path) -> None:
    found = asked(store(tmp_path / "store", requests(slow="nobody")), *EVER)
    nothing = "No segment by tenant.id differs from the others in breaches (4 segments, 2,000 requests)."
    assert found["sentence"] == nothing
    assert found["different"] == 0


def test_beyond_the_largest_all_are_summed(planted: Path) -> None:
    found = asked(planted, *EVER, "--by", "tenant.id", "--top", 2)
    assert len(found["segments"]) == 2
    assert found["others"]["segments"] == 2
    assert sum(one["requests"] for one in (*found["segments"], found["others"])) == 2000


def test_columns_and_resource_attributes_are_segments_too(tmp_path: Path) -> None:
    made = (
        Made(number, NOON + number * MS, {"inference": 10.0 + number % 7}, model="ab"[number % 2],
             resource={"region": "eu" if number % 3 else "us"})
        for number in range(1, 400)
    )  # fmt: skip
    path = lines(tmp_path / "spans.jsonl", made)
    assert {one["segment"] for one in asked(path, "--by", "model")["segments"]} == {"a", "b"}
    found = asked(path)
    assert found["by"] == "region"
    first = found["segments"][0]
    assert (first["segment"], first["breach_share"], first["judged"]) == ("eu", None, 0)
    assert first["q_value"] is not None


def test_sampled_requests_count_for_all_they_stand_for(tmp_path: Path) -> None:
    found = asked(store(tmp_path / "store", kept(requests(4000, probability=0.25))), *EVER)
    assert found["estimated"]
    for one in found["segments"]:
        mine = [each for each in requests(4000) if each.attributes["tenant.id"] == one["segment"]]
        share = sum(each.word == "breach" for each in mine) / len(mine)
        assert one["interval"][0] < share < one["interval"][1]
        assert one["breaches"] == sum(each.word == "breach" for each in mine)
