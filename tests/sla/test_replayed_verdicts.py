"""A stored request, replayed: the verdicts of the oracle on the request as it was, or unknown. Never another one."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import yaml
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from heavy import HEAVY
from sla import verdict_oracle
from sla.recording import START, recorder_of
from sla.test_verdict_oracle import send
from stagetrace import semconv
from stagetrace.analysis.replay import UNKNOWN, replay, stored
from stagetrace.policy.policy import Policy
from stagetrace.request.chunk_times import Stream
from stagetrace.store.base import SpanRow
from stagetrace.store.entries import segment
from stagetrace.store.rows import row

POLICIES = 3_000 if HEAVY else 60
OF_A_POLICY = 40


def recorded(policy: Policy, requests: list[verdict_oracle.Sent]) -> list[SpanRow]:
    """Return the entry spans of requests as their process sends them, with method and route as adapters add them."""
    recorder, _, sender = recorder_of(ALWAYS_ON, policy)
    for request in requests:
        send(recorder, request)
    found = []
    for request, message in zip(requests, sender.sent, strict=True):
        (entry,) = [span for span in ScopeSpans.FromString(message).spans if span.name == "r"]
        one = row("shop", entry)
        found.append(SpanRow(**{**vars(one), "attributes": {**one.attributes, **named(request)}}))
    return found


def named(request: verdict_oracle.Sent) -> dict[str, Any]:
    """Return what the adapter of a protocol adds: method, route, and how the response passed."""
    stream = Stream()
    for at in request.chunks:
        stream.add(START + at, 1)
    route = {"http.route": request.route} if request.route else {}
    disconnect = {semconv.NETWORK_DISCONNECT: "client"} if request.disconnected else {}
    return {"http.request.method": request.method, **route, **disconnect, **stream.attributes(START)}


@pytest.mark.thorough
@pytest.mark.heavier(f"{POLICIES:,} policies")
def test_a_replayed_verdict_is_that_of_the_oracle_or_unknown() -> None:
    """Under the policy that judged the request in its process, and under another one."""
    chance = random.Random(62)
    words: Counter[str] = Counter()
    for _ in range(POLICIES):
        documents = [verdict_oracle.document(chance) for _ in range(2)]
        policies = [Policy.read(yaml.safe_dump(one), "the test") for one in documents]
        requests = [verdict_oracle.sent(chance) for _ in range(OF_A_POLICY)]
        for request, span in zip(requests, recorded(policies[0], requests), strict=True):
            for document, policy in zip(documents, policies, strict=True):
                verdicts = replay(policy, stored(span, policy.keys, partial(segment, span)))
                found = {one.objective.name: one.word for one in verdicts}
                expected = {name: word for name, word, _ in verdict_oracle.verdicts(document, request)}
                assert list(found) == list(expected), (document, request)
                known = {name: word for name, word in found.items() if word != UNKNOWN}
                assert known == {name: expected[name] for name in known}, (document, request, span)
                words.update(found.values())
    assert min(words[word] for word in ("good", "breach", "excluded")) > 50 * POLICIES / 60
    assert words[UNKNOWN] < 0.25 * sum(words.values())
