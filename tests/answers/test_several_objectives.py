"""Requests that several objectives judged count under each of them, and once as requests: as counted one by one."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import EVER, NOON, Made, reading, store
from cli.running import printed
from stagetrace.analysis import report, routes_and_stages, slo, wrong_now
from stagetrace.policy import entry_span

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

S = 10**9
TARGETS = {"predict-p99": "99% over 28d", "predict p50": "50% over 7d", "it's": "99.9% over month@Europe/Berlin"}
BREACHED = {"good": False, "breach": True}


def requests(seed: int) -> list[Made]:
    """Return requests of one to three objectives, of which the entry span shows one as a process does; some sampled."""
    chance = random.Random(seed)
    made = []
    for number in range(1, 900):
        names = sorted(chance.sample(sorted(TARGETS), chance.randrange(4)))
        verdicts = [(chance.choice(["good", "good", "breach", "excluded"]), name, TARGETS[name]) for name in names]
        first = [one for word in ("breach", "good", "excluded") for one in verdicts if one[0] == word][:1]
        more: dict[str, Any] = {}
        for word, name, target in first:
            more = {
                "sla.verdict": word,
                "sla.objective": name,
                "sla.breached": {"good": False, "breach": True}.get(word),
            }
            more["sla.target"] = None if target == "99% over 28d" else target
            more |= {"sla.overrun_ms": 3.0, "sla.breach.stage": "inference"} if word == "breach" else {}
            more |= {"sla.excluded.reason": chance.choice(["rule", "warmup", "error"])} if word == "excluded" else {}
        if len(verdicts) > 1:
            more["sla.verdicts"] = entry_span.write(verdicts)
        sampled = None if more.get("sla.breached") else chance.choice([None, 0.25])
        route = chance.choice(["/predict", "/embed"])
        start = NOON + chance.randrange(600) * S
        made.append(Made(number, start, route=route, probability=sampled, attributes=more))
    return made


def judged(one: Made) -> dict[tuple[str, str | None], str]:
    """Return the verdicts of a request by objective and target."""
    read = one.all_attributes
    if "sla.verdicts" in read:
        listed = entry_span.read(read["sla.verdicts"])[0]
        return {(each.objective, None if each.target == "99% over 28d" else each.target): each.word for each in listed}
    return {(read["sla.objective"], read.get("sla.target")): read["sla.verdict"]} if "sla.objective" in read else {}


def weighed(requests: Iterable[Made], word: str | None = None) -> float:
    """Return for how many requests these stand, all of them or those whose entry span shows this verdict."""
    found = [one for one in requests if word is None or one.all_attributes.get("sla.verdict") == word]
    return sum(4.0 if one.probability else 1.0 for one in found)


@pytest.mark.parametrize("seed", range(3))
def test_each_objective_counts_and_a_request_is_one(tmp_path: Path, seed: int) -> None:
    made, begin, end = requests(seed), NOON, NOON + 600 * S
    words: Counter[tuple[str | None, str, str | None, str]] = Counter()
    for one in made:
        for (name, target), word in judged(one).items():
            words[one.route, name, target, word] += int(weighed([one]))
    deploy = report.Window(begin, begin + 60 * S, "deploy")
    with reading(store(tmp_path / "store", made)) as relations:
        found = slo.ask(relations, end)
        period = report.ask(relations, report.Options(begin, end, (deploy,)))
        listed = routes_and_stages.ask(relations)
        now = wrong_now.ask(relations, begin, end)
    for objective in found.objectives:
        key, of = (objective.route, objective.objective or "", objective.target_text), objective.counts
        assert [of.good, of.breaches, of.excluded] == [
            words[key[0], key[1], key[2], word] for word in ("good", "breach", "excluded")
        ]
    assert {(one.route, one.objective) for one in found.objectives} == {key[:2] for key in words}
    assert found.unjudged.requests == weighed(one for one in made if not judged(one))
    for route in listed:
        own = {key[3]: value for key, value in words.items() if key[:2] == (route.route, route.objective)}
        if own:
            assert (route.requests, route.judged) == (sum(own.values()), own["good"] + own["breach"])
    early, late = ([one for one in made if (one.start_unix_nano < deploy.until_ns) == is_early] for is_early in (1, 0))
    assert period.requests.requests == sum(now.requests) == weighed(made)
    assert period.excluded == {**period.excluded, "deploy": weighed(early)}
    assert sum(period.excluded.values()) == weighed(early) + weighed(late, "excluded")
    assert sum(now.breaches) == weighed(made, "breach") == sum(loss.breaches for loss in now.losses)
    assert {(one.route, one.objective, one.counts.breaches) for one in now.lines} == {
        (one.route, one.objective, one.counts.breaches) for one in found.objectives
    }


def test_breaches_of_one_objective_name_only_the_services_that_it_judged(tmp_path: Path) -> None:
    made = [
        Made(number, NOON + number * S, service=service, objective=objective, within_ms=5.0)
        for number, (service, objective) in enumerate([("bot", "chat"), ("bot", "chat"), ("rank", "predict")], 1)
    ]
    folder = ("breaches", "--each", "--store", store(tmp_path / "store", made), *EVER)
    assert "\nAll requests of services bot, rank." in printed(*folder)
    sentence, about, *_ = printed(*folder, "--judged-by", "chat").splitlines()
    assert sentence.startswith("2 of 2 judged requests missed chat, ")
    assert about == "All requests of service bot."
    assert "rank" not in printed(*folder, "--judged-by", "chat")
