"""`stagetrace sla replay`: what a policy would have said, as replaying each stored request alone says it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from answers.made import EVER, NOON, Made, lines, store
from cli.running import answered, printed
from stagetrace.analysis import policy_replay
from stagetrace.analysis.replay import UNKNOWN, replay, stored
from stagetrace.policy.objective import Condition, Deadline, Objective
from stagetrace.policy.policy import Policy
from stagetrace.store import Selection, open_store
from stagetrace.store.entries import segment

if TYPE_CHECKING:
    from pathlib import Path

MS = 1_000_000
S = 10**9
HOUR = 3_600 * S
WHOLE = Selection(0, 2**63 - 1)
asked = partial(answered, "sla", "replay", *EVER)


def requests(seed: int, count: int = 250) -> list[Made]:
    """Return requests of all kinds, their times often just at the bounds of `policies`."""
    chance = random.Random(seed)
    pick = chance.choice
    made = []
    for number in range(1, count + 1):
        word = pick(["good", "breach", "excluded", None])
        source = pick([None, None, "x-request-timeout-ms"]) if word in ("good", "breach") else None
        is_rpc = chance.random() < 0.2
        named = {
            "http.request.method": None,
            "rpc.method": "pkg.S/M",
            "sla.deadline.remaining_ms": pick([None, 20.0, 21.5]),
        }
        attributes = {
            **(named if is_rpc else {}),
            "sla.deadline.source": source,
            "tenant.tier": pick(["gold", "free", None]),
            "http.request.header.x-plan": pick([["a"], None]),
            "url.scheme": pick(["http", "http", "ws"]),
            "stagetrace.network.first_byte_ms": pick([None, 5.0, 5.000001]),
            "stagetrace.network.chunk_gap.max_ms": pick([1.0, 9.5]),
            "stagetrace.tokens.first_ms": pick([None, 7.0, 7.000001]),
            "stagetrace.tokens.gap.mean_ms": pick([None, 2.0, 2.0000001]),
            "gen_ai.usage.output_tokens": pick([None, 1, 50]),
            "stagetrace.network.disconnect": pick([None, None, None, "client"]),
            "sla.segment": pick([None, "gold", "other"]),
        }
        made.append(
            Made(
                number,
                NOON + chance.randrange(3_600) * S,
                route=None if is_rpc else pick(["/predict", "/embed"]),
                model=pick(["churn", "ranker"]),
                service=pick(["shop", "search"]),
                duration_ms=pick([20.0, 20.000001, 50.0, 50.5, 500.0]),
                within_ms=50.0 if word else None,
                verdict=word,
                objective=pick(["predict", "POST /predict within 50ms"]),
                status=pick([200, 200, 500]),
                attributes=attributes,
                resource={"service.instance.id": pick("abc")},
            )
        )
    return made


def policies() -> list[Policy]:
    """Return policies that ask for all that one can ask for."""
    within = Objective("predict", "POST", "/predict", 50 * MS)
    gold = Objective("gold", "POST", "*", 20 * MS, conditions=(Condition("tenant.tier", "gold"),), continues=True)
    plan = Objective("plan", None, "/*", 20 * MS, conditions=(Condition("header:x-plan", "a"),), base="rest")
    region = Objective("eu", None, "/predict", 20 * MS, conditions=(Condition("baggage:region", "eu"),), base="predict")
    chunks = Objective("chunks", None, "*", 500 * MS, first_chunk_ns=5 * MS, per_chunk_ns=5 * MS, errors="bad")
    tokens = Objective("tokens", None, "*", 500 * MS, first_token_ns=7 * MS, per_token_ns=2 * MS, disconnect="breach")
    rpc = Objective("rpc", None, "pkg.S/M", 50 * MS, deadline=Deadline(("grpc-timeout", "x-request-timeout-ms")))
    ours = Objective("ours", None, "*", 50 * MS, conditions=(Condition("service.name", "shop"),), errors="excluded")
    warm = Objective("warm", "WEBSOCKET", "*", 20 * MS, warmup_s=900)
    late = Objective("late", "POST", "*", 5 * MS, deadline=Deadline(("x-request-timeout-ms",), "replace"))
    return [
        Policy.parse("POST /predict within 20ms for 90%; /embed excluded; * within 50ms"),
        Policy((gold, within, plan, Objective("rest", None, "*", 50 * MS))),
        Policy((region, within, chunks)),
        Policy((tokens,)),
        Policy((rpc, warm, ours, late)),
    ]


@pytest.mark.parametrize("number", range(5))
def test_all_requests_together_are_replayed_as_each_one_alone(tmp_path: Path, number: int) -> None:
    policy, made = policies()[number], requests(number)
    words: Counter[tuple[str, str]] = Counter()
    changed: Counter[tuple[str, str | None, str]] = Counter()
    unmatched = 0
    first: dict[tuple[str, str], int] = {}
    for one in made:
        process = (one.service, one.resource["service.instance.id"])
        first[process] = min(first.get(process, one.start_unix_nano), one.start_unix_nano)
    with open_store(str(lines(tmp_path / "spans.jsonl", made))) as reader:
        for span in reader.newest_requests(None):  # type: ignore[attr-defined]
            age_ns = span.start_unix_nano - first[span.service, span.resource["service.instance.id"]]
            request = replace(stored(span, policy.keys, partial(segment, span)), age_s=age_ns / S)
            verdicts = replay(policy, request)
            unmatched += not verdicts
            for each in verdicts:
                name, was = each.objective.name, request.recorded.of(each.objective.name)
                words[name, each.word] += 1
                if each.word not in (UNKNOWN, was):
                    changed[name, was, each.word] += 1
        with reader.relations(WHOLE) as relations:
            found = policy_replay.ask(relations, policy, NOON, NOON + HOUR)
    assert (found.requests, found.stored, found.left, found.unmatched) == (len(made), len(made), 0, unmatched)
    for outcome in found.outcomes:
        name = outcome.objective.name
        assert (outcome.judged, outcome.breaches) == (
            words[name, "good"] + words[name, "breach"],
            words[name, "breach"],
        )
        assert (outcome.excluded, sum(outcome.unknown.values())) == (words[name, "excluded"], words[name, UNKNOWN])
        assert outcome.breaches_a_day == pytest.approx(24 * outcome.breaches, rel=0.01)
    ours: Counter[tuple[str, str | None, str | None]] = Counter()
    for change in found.changes:
        if change.objective is not None:
            ours[change.objective, change.was, change.now] += change.stored
    assert ours == changed


RECORDED = "POST /predict within 50ms"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of 1,000 requests in a day: 30 of 80 ms were breaches of 50 ms, 100 of 40 ms were not."""
    took = {**dict.fromkeys(range(1, 31), 80.0), **dict.fromkeys(range(31, 131), 40.0)}
    made = [
        Made(number, NOON + number * 86_400 * MS, {"inference": took.get(number, 20.0)}, within_ms=50.0)
        for number in range(1, 1_001)
    ]
    return store(tmp_path_factory.mktemp("replay") / "store", made)


def test_a_stricter_policy_finds_more_breaches(folder: Path) -> None:
    policy = "POST /predict within 30ms for 90%; * within 1s"
    span = ("--until", "2026-03-02T12:00:01Z")
    answer = asked("--store", folder, "--policy", policy, *span, code=1)
    first, rest = answer["objectives"]
    assert (first["judged"], first["breaches"], first["recorded_breaches"]) == (1_000, 130, 30)
    assert (first["attainment"], first["target"], first["missed"]) == (0.87, 0.9, True)
    assert first["breaches_a_day"] == pytest.approx(130, rel=0.01)
    assert (rest["judged"], rest["attainment"]) == (0, None)
    (change,) = answer["changes"]
    assert (change["was"], change["now"], change["requests"]) == ("good", "breach", 100)
    assert (change["objective"], change["recorded"]) == ("POST /predict within 30ms", RECORDED)
    shown = printed("sla", "replay", *EVER, "--store", folder, "--policy", policy, *span, code=1)
    assert (
        "0 of 2 objectives would be kept, 1 missed, 1 without a verdict; out of 1,000 requests, 100 verdicts" in shown
    )


def test_a_looser_policy_and_one_about_something_else(folder: Path) -> None:
    (change,) = asked("--store", folder, "--policy", "* within 100ms")["changes"]
    assert (change["was"], change["now"], change["requests"]) == ("breach", "good", 30)
    answer = asked("--store", folder, "--policy", "/other within 1s", code=2)
    assert answer["unmatched"] == 1_000
    assert [(one["was"], one["now"], one["requests"]) for one in answer["changes"]] == [
        ("good", None, 970),
        ("breach", None, 30),
    ]


def test_a_header_that_is_not_stored_leaves_verdicts_unknown(folder: Path, tmp_path: Path) -> None:
    """And the interval holds for both cases."""
    file = tmp_path / "sla.yaml"
    file.write_text(
        "version: 1\nobjectives:\n  - name: predict\n    match: {route: POST /predict}\n    within: 50ms\n"
        "    overrides: [{when: {'header:x-plan': gold}, within: 30ms, name: gold}]\n"
    )
    answer = asked("--store", folder, "--policy", file, code=2)
    for one in answer["objectives"]:
        assert one["judged"] == 0
        assert one["unknown"] == [
            {"reason": "`header:x-plan` is not stored: segments by it would store it", "requests": 1_000}
        ]


def test_a_condition_is_on_the_attribute_and_no_column_of_its_name(tmp_path: Path) -> None:
    """Whatever its name; one that a column of the answer of the store has is not taken for it."""
    names = ("model", "failed", "requests", "took_ns", "of_service", 'it\'s "so"', "attribute:x")
    made = [Made(number, NOON + number, attributes=dict.fromkeys(names, f"v{number % 2}")) for number in range(1, 11)]
    path = lines(tmp_path / "spans.jsonl", made)
    rules = tuple(
        Objective(name, None, "*", 50 * MS, conditions=(Condition(name, "v1"),), continues=True) for name in names
    )
    with open_store(str(path)) as reader, reader.relations(WHOLE) as relations:
        found = policy_replay.ask(relations, Policy(rules), NOON, NOON + HOUR)
    assert [one.judged for one in found.outcomes] == [5.0] * len(names)


def test_a_policy_of_thousands_of_objectives(folder: Path) -> None:
    tenants = [
        Objective(f"t{number}", None, "*", (10 + number % 90) * MS, conditions=(Condition("tenant", f"t{number}"),))
        for number in range(10_000)
    ]
    with open_store(str(folder)) as reader, reader.relations(WHOLE) as relations:
        found = policy_replay.ask(
            relations, Policy((*tenants, Objective("rest", None, "*", 50 * MS))), NOON, NOON + HOUR
        )
    assert [(one.objective.name, one.breaches) for one in found.outcomes if one.judged] == [("rest", 30)]


def test_of_sampled_requests_the_new_breaches_are_an_estimate(tmp_path: Path) -> None:
    """Breaches as recorded were all kept; of those that only this policy finds, one in four."""
    chance = random.Random(3)
    made = [
        Made(number, NOON + number * S, {"inference": 80.0}, within_ms=50.0, probability=0.25)
        for number in range(1, 51)
    ]
    kept = [number for number in range(51, 4_051) if chance.random() < 0.25]
    for number in kept:
        took = {"inference": 40.0 if number % 10 == 0 else 20.0}
        made.append(Made(number, NOON + number * S, took, within_ms=50.0, probability=0.25))
    folder = store(tmp_path / "store", made)
    (one,) = asked("--store", folder, "--policy", "* within 30ms for 50%")["objectives"]
    assert one["estimated"]
    assert one["sampling_hides_breaches"]
    low, high = one["interval"]
    assert low < 3_600 / 4_050 < high
    assert high - low < 0.06
    (same,) = asked("--store", folder, "--policy", "* within 50ms for 50%")["objectives"]
    assert not same["sampling_hides_breaches"]
    assert same["breaches"] == 50


def test_a_recording_ends_with_its_last_request(tmp_path: Path) -> None:
    """So breaches a day are not of the time that passed since."""
    made = [Made(number, NOON + number * 864 * S, {"inference": 80.0}, within_ms=50.0) for number in range(101)]
    path = lines(tmp_path / "spans.jsonl", made[1:])
    (one,) = asked("--store", path, "--policy", "* within 50ms for 1%", code=1)["objectives"]
    assert one["breaches_a_day"] == pytest.approx(100, rel=0.02)
