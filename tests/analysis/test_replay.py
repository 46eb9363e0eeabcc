"""The verdict of a policy on a stored request is that of the process, or unknown for reasons that are named."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import semconv
from stagetrace.analysis.replay import AGE, DEADLINE, TOKENS, UNKNOWN, not_stored, replay, stored
from stagetrace.policy.objective import Condition, Deadline, Objective
from stagetrace.policy.policy import Policy
from stagetrace.policy.verdict import decide
from stagetrace.request.chunk_times import Stream
from stagetrace.request.generation import Call, Generation
from stagetrace.sla.decision import streamed_in, tokens_in
from stagetrace.store.base import SpanRow
from stagetrace.store.entries import segment

if TYPE_CHECKING:
    from stagetrace.analysis.replay import Request

MS = 1_000_000
START = 1_790_000_000_000_000_000
PREDICT = Objective("predict", "POST", "/predict", 50 * MS)


def span(took_ns: int = 10 * MS, attributes: dict[str, Any] | None = None, status: str = "UNSET") -> SpanRow:
    read = {"http.request.method": "POST", "http.route": "/predict", **(attributes or {})}
    read = {key: value for key, value in read.items() if value is not None}
    return SpanRow("a" * 32, "b" * 16, None, "POST /predict", "shop", "SERVER", START, START + took_ns, read, status)


def request(policy: Policy, one: SpanRow) -> Request:
    return stored(one, policy.keys, lambda key: segment(one, key))


def words(policy: Policy, one: SpanRow) -> list[tuple[str, str]]:
    return [(judged.objective.name, judged.word) for judged in replay(policy, request(policy, one))]


def test_a_stored_request_gets_the_verdict_of_the_process() -> None:
    """Random streamed and generated responses, at the edge of random bounds, through the attributes that are stored."""
    chance = random.Random(24)
    seen = set()
    for _ in range(4_000):
        stream, generation = Stream(), Generation()
        at = START
        for _ in range(chance.choice([0, 1, 2, 5])):
            at += chance.choice([1, 333_333, 1_000_001, 20 * MS])
            stream.add(at, 10)
        call = Call({}, START)
        now = START
        for place in range(chance.choice([0, 1, 2, 4])):
            now += chance.choice([1, 777, 10 * MS])
            call.add(now, chance.choice([1, 3]) if place else 1)
        call.end(now)
        if chance.random() < 0.8 and call.output is not None:
            generation.calls.append(call)
        took = max(at, now) - START + chance.choice([0, 1, 50])
        tokens = tokens_in(generation, START) if generation.calls else None
        streamed = streamed_in(stream, START)
        read = {**stream.attributes(START), **generation.attributes(START, START + took)} if generation.calls else {}
        disconnected, failed = chance.random() < 0.2, chance.random() < 0.2
        read = {**stream.attributes(START), **read}
        if disconnected:
            read[semconv.NETWORK_DISCONNECT] = "client"
        edges = [took, 1_000_000_000]
        objective = Objective(
            "predict",
            *("POST", "/predict", chance.choice([took, took - 1 or 1, took + 1])),
            first_chunk_ns=chance.choice([None, streamed.first_ns if streamed else 1, 1_000_000]),
            per_chunk_ns=chance.choice([None, 333_333, 333_332, 1_000_000]),
            first_token_ns=chance.choice([None, *edges, tokens.first_ns if tokens and tokens.first_ns else 1]),
            per_token_ns=chance.choice([None, 259, 260, 777, 10 * MS, 5 * MS]),
            disconnect=chance.choice([None, "breach", "excluded"]),
            errors=chance.choice(["bad", "excluded", "ignored"]),
        )
        policy = Policy((objective,))
        ended = {"disconnected": disconnected, "failed": failed}
        word, missed = decide(objective, took, streamed, tokens, **ended)
        (found,) = replay(policy, request(policy, span(took, read, "ERROR" if failed else "UNSET")))
        seen.add(found.word)
        if found.word == UNKNOWN:
            assert found.why == (TOKENS,)
            assert tokens is not None
            assert not tokens.following
        else:
            assert found.word == word
            if found.missed is None:
                assert missed is None or (tokens is not None and not tokens.following)
            else:
                assert missed is not None
                assert (found.missed.bound, found.missed.took_ns) == (missed.bound, missed.took_ns)
    assert seen == {"good", "breach", "excluded", UNKNOWN}


def test_a_chain_of_objectives_judges_as_in_the_process() -> None:
    gold = replace(
        PREDICT, name="gold", within_ns=5 * MS, conditions=(Condition("tenant.tier", "gold"),), base="predict"
    )
    policy = Policy((gold, replace(PREDICT, continues=True), Objective("all", None, "*", MS)))
    assert words(policy, span(attributes={"tenant.tier": "gold"})) == [("gold", "breach")]
    assert words(policy, span(attributes={"tenant.tier": "free"})) == [("predict", "good"), ("all", "breach")]
    assert words(policy, span(attributes={"http.route": "/health"})) == [("all", "breach")]
    assert words(Policy((gold,)), span()) == []


@pytest.mark.parametrize("key", ["header:x-plan", "baggage:plan"])
def test_a_condition_on_what_is_not_stored_leaves_the_verdict_unknown(key: str) -> None:
    """Unless the objective is about the request either way, or what is stored says which it was."""
    name = f"predict[{key}=gold]"
    gold = replace(PREDICT, name=name, within_ns=5 * MS, conditions=(Condition(key, "gold"),), base="predict")
    policy = Policy((gold, PREDICT, Objective("all", None, "*", MS)))
    found = replay(policy, request(policy, span()))
    assert [(one.objective.name, one.word, one.why) for one in found] == [
        (each, UNKNOWN, (not_stored(key),)) for each in (name, "predict")
    ]
    assert words(Policy((replace(PREDICT, continues=True), replace(gold, base=None))), span()) == [
        ("predict", "good"),
        (name, UNKNOWN),
    ]
    recorded = {"sla.objective": name, "sla.verdict": "good"}
    assert words(policy, span(attributes=recorded)) == [(name, "breach")]
    of_its_own = Policy((replace(gold, name="gold"), PREDICT))  # which another condition may have had by then
    recorded = {"sla.objective": "gold", "sla.verdict": "good"}
    assert words(of_its_own, span(attributes=recorded)) == [("gold", UNKNOWN), ("predict", UNKNOWN)]
    by_segment = Policy((gold, replace(PREDICT, segment_by=(key,))))
    for value, expected in (("gold", name), ("free", "predict"), ("(none)", "predict")):
        recorded = {"sla.objective": "predict", "sla.verdict": "good", "sla.segment": value}
        assert [one for one, _ in words(by_segment, span(attributes=recorded))] == [expected]
    recorded = {"sla.objective": "predict", "sla.verdict": "good", "sla.segment": "other"}
    assert words(by_segment, span(attributes=recorded)) == [(name, UNKNOWN), ("predict", UNKNOWN)]


def test_a_header_that_is_stored_as_an_attribute_is_known() -> None:
    gold = replace(PREDICT, name="gold", conditions=(Condition("header:x-plan", "go*"),))
    policy = Policy((gold, PREDICT))
    assert words(policy, span(attributes={"http.request.header.x-plan": ["gold"]})) == [("gold", "good")]
    assert words(policy, span(attributes={"http.request.header.x-plan": ["free"]})) == [("predict", "good")]


def test_a_deadline_is_known_from_the_rpc_or_the_recorded_threshold() -> None:
    """Where it is not, a breach without it stays one, as it can only have tightened the bound."""
    header = "x-request-timeout-ms"
    objective = replace(PREDICT, deadline=Deadline((header,)))
    policy = Policy((objective,))
    (found,) = replay(policy, request(policy, span()))
    assert (found.word, found.why) == (UNKNOWN, (DEADLINE.format(header),))
    assert words(policy, span(60 * MS)) == [("predict", "breach")]
    replacing = Policy((replace(objective, deadline=Deadline((header,), "replace")),))
    assert words(replacing, span(60 * MS)) == [("predict", UNKNOWN)]
    for took, word in ((20, "good"), (21, "breach")):
        recorded = {"sla.verdict": word, "sla.deadline.source": header, "sla.threshold_ms": 20.0}
        (found,) = replay(policy, request(policy, span(took * MS, recorded)))
        assert (found.word, found.objective.within_ns) == (word, 20 * MS)
    rpc = Objective("rpc", None, "pkg.S/M", 50 * MS, deadline=Deadline(("grpc-timeout",)))
    for remaining, word in ((9.0, "breach"), (10.0, "good"), (None, "good")):
        called = {
            "http.request.method": None,
            "http.route": None,
            "rpc.method": "pkg.S/M",
            "sla.deadline.remaining_ms": remaining,
        }
        assert words(Policy((rpc,)), span(10 * MS, called)) == [("rpc", word)]


def test_a_warm_up_is_over_if_the_process_was_seen_long_enough_before() -> None:
    policy = Policy((replace(PREDICT, warmup_s=30),))
    one = request(policy, span())
    (found,) = replay(policy, one)
    assert (found.word, found.why) == (UNKNOWN, (AGE,))
    assert [judged.word for judged in replay(policy, replace(one, age_s=30.0))] == ["good"]
