"""Verdicts of randomised requests under randomised policies, against an oracle: whatever the head sampler drops."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from opentelemetry.context import Context
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from heavy import HEAVY
from sla import verdict_oracle
from sla.recording import START, Described, recorder_of
from stagetrace import guard, semconv
from stagetrace.bridge.entry import SeenSpan
from stagetrace.policy import entry_span
from stagetrace.policy.policy import Policy
from stagetrace.request.chunk_times import Stream
from stagetrace.request.context import open_entry
from stagetrace.request.generation import begin

if TYPE_CHECKING:
    from sla.verdict_oracle import Sent
    from stagetrace.sla.entry_recorder import EntryRecorder

REQUESTS = 1_000_000 if HEAVY else 4_500  # in all, of which a third under each rate of sampling
OF_A_POLICY = 100
RATES = (1.0, 0.01, 0.0)


class Caller:
    """The headers of a request, as the adapters of protocols have them."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.header = headers.get

    def deadline_ns(self) -> None:
        return None


def send(recorder: EntryRecorder, request: Sent) -> None:
    record = Described(start=START)
    record.caller = Caller(request.headers)
    if request.chunks:
        record.stream = Stream()
        for at in request.chunks:
            record.stream.add(START + at, 1)
    if request.tokens:
        call = begin(record, {}, START)
        for at in request.tokens:
            call.add(START + at)
        call.end(START + request.duration)
    if request.disconnected:
        record.disconnect = "client"
    open_entry(record, "r", Context(), recorder)
    entry = SeenSpan(record)
    if request.tenant is not None:
        entry.set_attribute("tenant", request.tenant)
    record.method, record.route, record.failed = request.method, request.route, request.failed
    record.end_entry(START + request.duration)


def entry_spans(sent: list[bytes]) -> list[tuple[int, dict[str, Any]]]:
    """Return duration and attributes of the entry spans among messages that were sent."""
    found = []
    for message in sent:
        (entry,) = [span for span in ScopeSpans.FromString(message).spans if span.name == "r"]
        attributes = {
            one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in entry.attributes
        }
        found.append((entry.end_time_unix_nano - entry.start_time_unix_nano, attributes))
    return found


@pytest.mark.heavier(f"{REQUESTS // len(RATES):,} requests")
@pytest.mark.parametrize("rate", RATES)
def test_verdicts_are_those_of_the_oracle(rate: float) -> None:
    """Each breach is sent, each span that is sent has the oracle's verdicts, and the counts are of all requests."""
    chance = random.Random(f"24 {rate}")
    kept = 0
    for _ in range(max(REQUESTS // len(RATES) // OF_A_POLICY, 1)):
        document = verdict_oracle.document(chance)
        policy = Policy.read(yaml.safe_dump(document), "the test")
        recorder, processor, sender = recorder_of(ParentBased(TraceIdRatioBased(rate)), policy)
        counts: Counter[tuple[str, str]] = Counter()
        requests = [verdict_oracle.sent(chance) for _ in range(OF_A_POLICY)]
        for request in requests:
            expected = verdict_oracle.verdicts(document, request)
            counts.update((name, word) for name, word, _ in expected)
            before = len(sender.sent)
            send(recorder, request)
            is_breach = any(word == "breach" for _, word, _ in expected)
            spans = entry_spans(sender.sent[before:])
            if is_breach or rate == 1:
                assert len(spans) == 1, (document, request)
            for duration, attributes in spans:
                assert duration == request.duration
                check(attributes, expected, (document, request))
            kept += len(spans)
        assert processor.counter.counts() == counts, document
        points = Counter(processor.counter.points())
        by_segment = Counter((one.objective, one.segment or None) for one in points.elements())
        expected_segments = verdict_oracle.segments(document, requests).items()
        assert by_segment == Counter((name, one) for name, found in expected_segments for one in found), document
    assert kept
    assert guard.failures == {}


def check(attributes: dict[str, Any], expected: list[tuple[str, str, int]], given: Any) -> None:
    """Compare what an entry span carries with the oracle's verdicts."""
    if not expected:
        assert semconv.SLA_VERDICT not in attributes, given
        return
    name, word, allowed_ns = verdict_oracle.shown(expected)
    assert (attributes[semconv.SLA_OBJECTIVE], attributes[semconv.SLA_VERDICT]) == (name, word), given
    breached = {"good": False, "breach": True, "excluded": None}[word]
    assert attributes.get(semconv.SLA_BREACHED) is breached, given
    if word == "good":
        assert attributes[semconv.SLA_THRESHOLD_MS] == allowed_ns / 1e6, given
    if len(expected) > 1:
        each, more = entry_span.read(attributes[semconv.SLA_VERDICTS])
        assert ([(one.objective, one.word) for one in each], more) == ([one[:2] for one in expected], 0), given
    else:
        assert semconv.SLA_VERDICTS not in attributes, given


def test_the_oracle_meets_all_verdicts_and_chains() -> None:
    """What it draws is not easy: each verdict, several objectives a request, durations that are just allowed."""
    chance = random.Random(24)
    words: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    just = 0
    for _ in range(300):
        document = verdict_oracle.document(chance)
        for _ in range(10):
            request = verdict_oracle.sent(chance)
            found = verdict_oracle.verdicts(document, request)
            words.update(word for _, word, _ in found)
            lengths[len(found)] += 1
            just += any(request.duration == allowed for _, _, allowed in found)
    assert min(words[word] for word in ("good", "breach", "excluded")) > 100
    assert min(lengths[length] for length in (0, 1, 2, 3)) > 30
    assert just > 20
