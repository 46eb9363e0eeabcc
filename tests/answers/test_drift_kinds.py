"""`drift` and `causes` over made requests of a service like one that people tried: what was planted is said first."""

from __future__ import annotations

import random
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import EVER, MS, NOON, Made, lines, store
from cli.running import answered
from stagetrace.analysis import cases, onset
from stagetrace.store import Selection, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

asked = partial(answered, "drift", *EVER, "--store")
S = 10**9
COUNT = 7200  # in 15 minutes
RELEASED = 430 * S  # 12:07:10
TENANTS = ("acme", "globex", "initech")


def ranks(
    *,
    count: int = COUNT,
    turkish_ms: float = 130.0,
    noise_ms: float = 0.0,
    blip: bool = False,
    within_ms: float | None = 100.0,
) -> Iterator[Made]:
    """Yield requests of `/rank`: from release 1.5.0 on, those in Turkish (3 %) take longer in preprocess.

    `noise_ms`: by which postprocess of all requests gets longer five minutes from the beginning. `blip`: for six
    seconds, a third of the requests take 200 ms longer.
    """
    chance = random.Random(38)
    for number in range(1, count + 1):
        at = round(number / count * 900 * S)
        is_new = at >= RELEASED
        lang = "tr" if chance.random() < 0.03 else chance.choice(["en", "de"])
        slow = turkish_ms * chance.uniform(0.8, 1.2) if is_new and lang == "tr" else 0.0
        stuck = 200.0 if blip and 690 * S <= at < 696 * S and chance.random() < 0.33 else 0.0
        stages = {
            "preprocess": chance.lognormvariate(1.3, 0.3) + slow,
            "inference": chance.lognormvariate(2.6, 0.3) + stuck,
            "postprocess": chance.lognormvariate(0.1, 0.2) + (noise_ms if at >= 300 * S else 0.0),
        }
        version, instance = ("1.5.0", "c7138bc9") if is_new else ("1.4.0", "0a55e1c0")
        yield Made(
            number,
            NOON + at,
            stages,
            service="rank",
            route="/rank",
            name="POST /rank",
            within_ms=within_ms,
            cause="compute",
            attributes={"lang": lang, "tenant.id": chance.choice(TENANTS), "http.request.body.size": len(lang) * 40},
            resource={"service.version": version, "service.instance.id": instance, "host.name": "one"},
        )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("kinds") / "store", ranks(noise_ms=1.3, blip=True))


def test_a_kind_that_got_slower_with_a_release_is_the_headline(planted: Path) -> None:
    """Three of a hundred requests, beside a step of 1.3 ms of all of them and a blip."""
    found = asked(planted, "--service", "rank", code=1)
    pattern = (
        r"Requests of POST /rank with lang tr take \d\.\d times as long "
        r"\(\d\d\.\d\d ms before, 1\d\d\.\d\d ms after, at the median\) since release 1\.5\.0 at 12:07:10 UTC: "
        r"(\d+) of (3,7\d\d) requests, in their stage preprocess; \d+ of \d+ series changed\."
    )
    said = re.fullmatch(pattern, found["sentence"])
    assert said, found["sentence"]
    new = [one for one in ranks(noise_ms=1.3, blip=True) if one.start_unix_nano >= NOON + RELEASED]
    turkish = [one for one in new if one.attributes["lang"] == "tr"]
    assert int(said[1]) == len(turkish)
    (kind,) = [one for one in found["changes"] if one["attributes"]]
    assert kind["attributes"] == {"lang": "tr"}
    assert (kind["release"]["key"], kind["release"]["value"]) == ("service.version", "1.5.0")
    assert kind["at_unix_nano"] == min(one.start_unix_nano for one in new)
    assert kind["harm_ms"] == max(one["harm_ms"] for one in found["changes"] if one["stage"] is None)
    small = [one for one in found["changes"] if one["stage"] == "postprocess"]
    assert small
    assert all(one["is_small"] for one in small)
    blip = [one for one in found["changes"] if 685 * S <= one["at_unix_nano"] - NOON <= 700 * S]
    assert blip == []


@pytest.mark.thorough
def test_without_an_objective_it_is_the_headline_too(tmp_path: Path) -> None:
    """Requests times milliseconds are what counts then."""
    found = asked(lines(tmp_path / "spans.jsonl", ranks(noise_ms=1.3, blip=True, within_ms=None)), code=1)
    assert found["sentence"].startswith("Requests of POST /rank with lang tr take "), found["sentence"]


def test_of_very_many_requests_releases_are_those_of_a_sample(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attributes are too dear to read of all, the moment is that of the first request in the sample."""
    with open_store(str(planted)) as reader, reader.relations(Selection(0, 2**63 - 1)) as relations:
        every = onset.ask(relations, COUNT)
        monkeypatch.setattr(onset, "MOST_STORED", 0)
        assert onset.ask(relations, COUNT, cases.ask_any(relations)) == every
        assert onset.ask(relations, COUNT) == []
    assert [(one.key, one.value, one.model) for one in every] == [
        ("service.version", "1.5.0", None), ("service.instance.id", "c7138bc9", None)
    ]  # fmt: skip


def test_a_selection_of_few_requests_is_enough(planted: Path) -> None:
    """214 requests with a factor of seven: the release, and no word of too little data."""
    found = asked(planted, "--segment", "lang=tr", code=1)
    assert 180 < found["requests"] < 250
    assert re.match(
        r"p50 of POST /rank stepped up from \d\d\.\d\d ms to 1\d\d\.\d\d ms \(\+\d+ %\) since release 1\.5\.0 at "
        r"12:07:1\d UTC, in its stage preprocess; ",
        found["sentence"],
    )


def test_a_small_step_alone_is_no_headline(tmp_path: Path) -> None:
    """1.3 ms of a request of 20 ms within 100 ms, and a blip: said, with what it is small against; exit code 0."""
    made = ranks(count=COUNT // 2, turkish_ms=0.0, noise_ms=1.3, blip=True)
    found = asked(store(tmp_path / "store", made), code=0)
    assert found["sentence"].startswith("No change that matters: p"), found["sentence"]
    assert "small against the request and its objective of 100 ms" in found["sentence"]
    assert all(one["is_small"] for one in found["changes"])


def test_causes_say_since_when(planted: Path) -> None:
    """The release, with the finding that began with it; a blip of six seconds is no onset."""
    found = answered("causes", "--store", planted, *EVER)
    assert "lang tr" in found["sentence"]
    assert "since release 1.5.0 at 2026-03-01 12:07:10 UTC" in found["sentence"]
    first = found["attributes"][0]
    assert first["since_release"]["value"] == "1.5.0"
    assert all(abs(one["at_unix_nano"] - NOON - 693 * S) > 10 * S for one in found["changes"]), found["changes"]


def test_what_was_always_so_has_no_since(tmp_path: Path) -> None:
    """A tenant that is slow from beginning to end: no moment is said, whatever was released."""

    def made() -> Iterator[Made]:
        chance = random.Random(5)
        for number in range(1, 3001):
            tenant = chance.choice(TENANTS)
            took = chance.lognormvariate(3, 0.4) * (1.8 if tenant == "globex" else 1)
            resource = {"service.version": "2" if number > 1500 else "1"}
            attributes = {"tenant.id": tenant}
            yield Made(
                number, NOON + number * 300 * MS, {"inference": took}, within_ms=40, cause="io_wait",
                attributes=attributes, resource=resource,
            )  # fmt: skip

    found = answered("causes", "--store", store(tmp_path / "store", made()), *EVER)
    assert "tenant.id globex" in found["sentence"]
    assert "since" not in found["sentence"]
    assert found["attributes"][0]["since_unix_nano"] is None


def with_service(number: int, **more: Any) -> Made:
    return Made(number, NOON + number * 100 * MS, service="shop", **more)


def test_a_step_of_all_requests_names_the_release(tmp_path: Path) -> None:
    """A model that got slower by 20 % with its version 3: its headline, and no kind beside it."""

    def made() -> Iterator[Made]:
        chance = random.Random(6)
        for number in range(1, 6001):
            is_new = number > 3500
            took = chance.lognormvariate(3, 0.2) * (1.2 if is_new else 1)
            lang = chance.choice(["en", "de", "tr"])
            yield with_service(
                number, stages={"preprocess": chance.uniform(1, 2), "inference": took}, model="churn",
                version="3" if is_new else "2", within_ms=250, attributes={"lang": lang},
            )  # fmt: skip

    found = asked(store(tmp_path / "store", made()), code=1)
    assert re.match(
        r"p\d\d of POST /predict stepped up from \S+ ms to \S+ ms \(\+\d\d %\) since version 3 of model churn at "
        r"12:05:50 UTC, in its stage inference; ",
        found["sentence"],
    ), found["sentence"]
    assert not [one for one in found["changes"] if one["attributes"]]
