"""The first sentence of `stagetrace compare`: for whom a release got slower, before what it gained."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from answers.made import EVER, MS, NOON, Made, store
from cli.running import answered, printed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ask = partial(answered, "compare", *EVER, "--store")
HOUR_NS = 3_600_000 * MS
RELEASES = ("--a", "service.version=1.4.0", "--b", "service.version=1.5.0")


def release(
    version: str, count: int = 3000, *, marked: str | None = None, route: str = "/rank", **more: Any
) -> Iterator[Made]:
    """Yield requests of a release: in 1.5.0 three in a hundred, of larger texts, take 7.8 times as long.

    The others are 18 % faster there. `marked`: an attribute that the slow ones have as `tr`.
    """
    is_new = version == "1.5.0"
    rng = np.random.default_rng([is_new, len(route)])
    for place in range(count):
        is_slow = place % 33 == 0
        factor = (7.8 if is_slow else 0.82) if is_new else 1.0
        took = {"preprocess": float(rng.lognormal(2.7, 0.2) * factor), "inference": float(rng.lognormal(1.2, 0.2))}
        own: dict[str, Any] = {"http.request.body.size": 100 if is_slow else 40}
        if marked is not None:
            own[marked] = "tr" if is_slow else ("en", "de")[place % 2]
        start = NOON + is_new * HOUR_NS + place * MS
        number = (1 + is_new) * 1_000_000 + len(route) * 100_000 + place
        yield Made(number, start, took, "rank", route, attributes=own, resource={"service.version": version}, **more)


def steady(version: str, route: str, count: int, low: float, factor: float = 1.0) -> Iterator[Made]:
    """Yield requests of another route, which a release makes slower by a factor."""
    is_new = version == "1.5.0"
    rng = np.random.default_rng([7, is_new, len(route)])
    for place in range(count):
        took = {"inference": float(rng.lognormal(low, 0.2)) * (factor if is_new else 1.0)}
        number = (3 + is_new) * 1_000_000 + len(route) * 10_000 + place
        start = NOON + is_new * HOUR_NS + place * MS
        yield Made(number, start, took, "rank", route, resource={"service.version": version})


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store of both releases of one route."""
    return store(tmp_path_factory.mktemp("released") / "store", [*release("1.4.0"), *release("1.5.0")])


def test_the_kind_that_got_slower_is_named_before_the_gain_of_the_others(released: Path) -> None:
    found = ask(released, *RELEASES)
    assert found["quantiles"][0]["interval"][1] < 0  # the median of all is surely faster
    sentence = found["sentence"]
    assert sentence.startswith("service.version 1.5.0: requests of 64 to 255 bytes are ")
    assert "times slower than with service.version 1.4.0, mostly in preprocess (91 of 3,000 requests); " in sentence
    assert "; the rest is " in sentence
    assert sentence.index("slower") < sentence.index("faster")
    (kind,) = found["kinds"]
    assert (kind["key"], kind["value"], kind["b_requests"]) == ("input_size", 3, 91)
    assert kind["difference"] == pytest.approx(5.5, abs=0.7)
    assert kind["interval"][0] > 2
    assert kind["rest_interval"][1] < 0
    shown = printed("compare", "--long", "--store", released, *EVER, *RELEASES)
    assert "Requests that got slower than the rest of their route" in shown
    assert shown.index("of 64 to 255 bytes", 200) < shown.index("(request)")


def test_the_kind_has_the_name_that_people_know(tmp_path: Path) -> None:
    """The same requests are a size, a language, and those of one host: the language is named."""
    found = ask(
        store(tmp_path / "store", [*release("1.4.0", marked="lang"), *release("1.5.0", marked="lang")]), *RELEASES
    )
    assert "requests with lang tr are " in found["sentence"]
    assert [one["key"] for one in found["kinds"]] == ["lang"]
    machine = [*release("1.4.0", marked="host.name"), *release("1.5.0", marked="host.name")]
    found = ask(store(tmp_path / "machine", machine), *RELEASES)
    assert "requests of 64 to 255 bytes are " in found["sentence"]


def test_a_release_that_is_slower_for_all_names_no_kind(tmp_path: Path) -> None:
    made = []
    for version in ("1.4.0", "1.5.0"):
        for place, one in enumerate(steady(version, "/rank", 2000, 3.0, 1.4)):
            own = {"lang": ("en", "de", "tr")[place % 3], "http.request.body.size": 10 + place % 300}
            made.append(Made(**{**one.__dict__, "attributes": own}))
    found = ask(store(tmp_path / "store", made), *RELEASES)
    assert found["kinds"] == []
    assert " slower at p" in found["sentence"]


def test_the_worst_route_is_named_and_no_percentile_over_routes(tmp_path: Path) -> None:
    """Over all routes p95 is that of /chat, which did not change, and p50 that of /rank."""
    made = []
    for version in ("1.4.0", "1.5.0"):
        made += [*release(version, 2000), *steady(version, "/chat", 400, 7.0), *steady(version, "/embed", 800, 2.0)]
    path = store(tmp_path / "store", made)
    found = ask(path, *RELEASES)
    sentence = found["sentence"]
    assert sentence.startswith("Route /rank, service.version 1.5.0: requests of 64 to 255 bytes are ")
    assert "(61 of 2,000 requests)" in sentence
    assert "; of 2 other routes none is surely slower" in sentence
    assert [one["route"] for one in found["routes"]] == ["/rank", "/embed", "/chat"]
    shown = printed("compare", "--long", "--store", path, *EVER, *RELEASES)
    assert "all 3 routes together, each as frequent as in a" in shown
    pooled = ask(path, *RELEASES, "--stratify", "none")
    assert "over all 3 routes together" in pooled["sentence"]
    assert pooled["routes"] == []
    gated = ask(path, *RELEASES, "--gate", "p50:+500%")
    assert "gate p50:+500% passes (over all 3 routes together)." in gated["sentence"]


def test_a_slower_route_is_named_before_a_larger_one_that_is_faster(tmp_path: Path) -> None:
    made = []
    for version in ("1.4.0", "1.5.0"):
        made += [*steady(version, "/rank", 3000, 3.0, 0.8), *steady(version, "/embed", 800, 2.0, 1.5)]
    found = ask(store(tmp_path / "store", made), *RELEASES)
    assert found["sentence"].startswith("Route /embed, service.version 1.5.0 is ")
    assert " slower at p" in found["sentence"].partition(";")[0]
    assert "; the other route is surely faster at some percentile" in found["sentence"]


@pytest.mark.parametrize(
    ("share", "count", "first"),
    [(0.03, 6000, "service.version 1.5.0 is "), (0.012, 2500, "service.version 1.5.0 is perhaps slower at p99 than ")],
)
def test_a_slower_tail_is_never_headed_by_a_faster_median(share: float, count: int, first: str, tmp_path: Path) -> None:
    """Surely slower or, of few, by the estimate alone; nothing that is recorded distinguishes the slow ones."""
    made = []
    for version in ("1.4.0", "1.5.0"):
        rng = np.random.default_rng([11, version == "1.5.0"])
        for place, one in enumerate(steady(version, "/rank", count, 3.0, 0.8)):
            is_slow = version == "1.5.0" and rng.random() < share
            took = {"inference": one.took_ms * (4 if is_slow else 1)}
            made.append(Made(**{**one.__dict__, "stages": took, "number": one.number * 10 + place % 10}))
    found = ask(store(tmp_path / "store", made), *RELEASES)
    p50, _, p99 = found["quantiles"]
    assert p50["interval"][1] < 0 < p99["difference"]
    assert found["sentence"].startswith(first)
    head, *rest = found["sentence"].split(";")
    assert "slower at p99" in head
    assert "faster" not in head
    assert any(" faster at p" in part for part in rest)
    assert ("not certain" in head) is (p99["interval"][0] is None or p99["interval"][0] <= 0)


def test_what_gained_for_all_is_said_to_be_faster(tmp_path: Path) -> None:
    made = [one for version in ("1.4.0", "1.5.0") for one in steady(version, "/rank", 3000, 3.0, 0.8)]
    found = ask(store(tmp_path / "store", made), *RELEASES)
    assert " faster at p" in found["sentence"].partition(";")[0]
    assert "slower" not in found["sentence"]
