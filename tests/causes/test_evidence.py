"""What a sentence counts adds up: its parts are of the stage that it names, or it says of what else they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks.causes.matrix import parts_exceed
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.causes.baseline import ENOUGH, Baselines
from stagetrace.causes.breakdown import breakdown_of
from stagetrace.policy.objective import Objective
from stagetrace.policy.verdict import decide, judge
from stagetrace.request.exchange import RemoteThread
from stagetrace.request.stages import Segment
from stagetrace.semconv import HANDLER, INFERENCE, NETWORK_RECEIVE, NETWORK_SEND, POSTPROCESS, PREPROCESS, QUEUE
from stagetrace.sla.finish import Within, clipped
from stagetrace.sources import gc_pauses, loops
from stagetrace.sources.thread_cpu import UNKNOWN, CpuSample, Descriptor, Share

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stagetrace.causes.cause import Breakdown

MS = 1_000_000
ROUTE = ("POST", "/predict")
STAGES = (QUEUE, NETWORK_RECEIVE, PREPROCESS, INFERENCE, POSTPROCESS, HANDLER, NETWORK_SEND, "tokenize")
WAITS: Sequence[dict[str, Any]] = (
    {"queue.reason": "socket"},
    {"queue.reason": "socket", "queue.blocked_by": "GET /hold"},
    {"queue.reason": "thread_pool"},
    {"queue.reason": "batch"},
)
# Each of several threads, on which sections may overlap: as those of a request that works in many at once do.
THREADS = tuple(Descriptor(number) for number in (1, 2))


class Request:
    """What a request's record has measured."""

    def __init__(self, **measured: Any) -> None:
        self.cpu_samples: Any = measured["cpu_samples"]
        self.computed: Any = measured["computed"]
        self.wakeups: Any = measured["wakeups"]
        self.calls: Any = measured["calls"]
        self.peer_waits: Any = measured["peer_waits"]
        self.socket_waits: Any = measured["socket_waits"]
        self.behind: Any = measured["behind"]
        self.remote_sections: Any = measured["remote_sections"]
        self.stream = None

    def fits_buffer(self, _activity: str) -> bool:
        return False

    def loop_shares(self, start: int, end: int) -> Any:
        return loops.recent_shares(start, end)


@st.composite
def intervals(draw: st.DrawFn, end: int) -> tuple[int, int]:
    begin = draw(st.integers(0, end - 1))
    return begin * MS, draw(st.integers(begin + 1, end)) * MS


@st.composite
def cpu_samples(draw: st.DrawFn, end: int) -> tuple[CpuSample, CpuSample]:
    thread = draw(st.sampled_from(THREADS))
    since, until = draw(intervals(end))
    computed = draw(st.integers(0, until - since))
    waited = draw(st.integers(0, until - since - computed))
    rivals, turns = draw(st.integers(0, 2 * (until - since))), draw(st.integers(1, 40))
    seen = draw(st.sampled_from([0, 50 << 32, 50 << 32 | 50, 50]))
    first: CpuSample = thread, since, 0, b"0 0 0", 0, None, 0
    return first, (thread, until, computed, f"0 {waited} {turns}".encode(), computed + rivals, None, seen)


@st.composite
def remote_sections(draw: st.DrawFn, end: int) -> tuple[int, int, RemoteThread, Share]:
    since, until = draw(intervals(end))
    computed = draw(st.integers(0, until - since))
    waited = draw(st.integers(0, until - since - computed))
    blocked = until - since - computed - waited
    return since, until, RemoteThread(), Share(until - since, computed, waited, blocked, 0, 1)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[Segment], Request, list[tuple[int, int, Share]]]:
    """Draw the stages of a request, what was measured in it, and what its event loop did."""
    segments: list[Segment] = []
    at = 0
    for stage in draw(st.lists(st.sampled_from(STAGES), min_size=1, max_size=7)):
        segment = Segment(stage, at * MS)
        at += draw(st.integers(1, 100))
        segment.end = at * MS
        if stage == QUEUE:
            segment.attributes = draw(st.sampled_from(WAITS))
        segments.append(segment)
    some = st.lists(intervals(at), max_size=3)
    loop = []
    if draw(st.booleans()):
        computed = draw(st.integers(0, at * MS))
        waited = draw(st.integers(0, at * MS - computed))
        blocked = at * MS - computed - waited
        share = Share(at * MS, computed, waited, blocked, draw(st.integers(0, at * MS)), draw(st.integers(1, 50)))
        loop = [(0, at * MS, share)]
    request = Request(
        cpu_samples=draw(st.lists(cpu_samples(at), max_size=4)),
        computed=[(*one, draw(st.integers(0, 50 * MS)), draw(st.sampled_from(THREADS)).thread) for one in draw(some)],
        wakeups=[(*one, draw(st.sampled_from([UNKNOWN, 0, 5 * MS]))) for one in draw(some)],
        calls=[("other", *one) for one in draw(some)],
        peer_waits=draw(st.none() | some),
        socket_waits=[(*one, draw(st.booleans())) for one in draw(st.lists(intervals(at), max_size=1))],
        behind=[(*one, "GET /hold") for one in draw(some)],
        remote_sections=draw(st.lists(remote_sections(at), max_size=2)),
    )
    return segments, request, loop


@pytest.fixture(autouse=True)
def collections() -> Iterator[None]:
    """Let the garbage collector have run twice, once in a thread of the requests."""
    before = list(gc_pauses.recent_pauses)
    gc_pauses.recent_pauses.clear()
    gc_pauses.recent_pauses.extend([(20 * MS, 45 * MS, THREADS[0].thread), (90 * MS, 120 * MS, 7)])
    yield
    gc_pauses.recent_pauses.clear()
    gc_pauses.recent_pauses.extend(before)


def drawn(made: tuple[list[Segment], Request, list[tuple[int, int, Share]]]) -> Breakdown:
    segments, request, loop = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "recent_shares", lambda *_: loop)
        return breakdown_of(segments, request)


@given(made=requests())
def test_each_stage_divides_into_its_own_time(made: Any) -> None:
    breakdown = drawn(made)
    for stage, took in breakdown.stages.items():
        of_stage = breakdown.within(stage).times
        assert all(part >= 0 for part in of_stage.values())
        assert sum(of_stage.values()) == pytest.approx(took, abs=100)
    assert sum(breakdown.times.values()) == pytest.approx(sum(breakdown.stages.values()), rel=0.01, abs=1_000)


@given(made=requests(), at=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_part_of_a_request_divides_into_its_own_time(made: Any, at: tuple[float, float]) -> None:
    """As the gap between two chunks of a response does."""
    segments, request, loop = made
    start, end = sorted(int(part * segments[-1].end) for part in at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "recent_shares", lambda *_: loop)
        breakdown = breakdown_of(clipped(segments, start, end), Within(request, start, end), {}, (start, end))
    assert sum(breakdown.stages.values()) == end - start
    assert sum(breakdown.times.values()) == pytest.approx(end - start, rel=0.01, abs=1_000)


def test_the_sentences_of_the_docs_add_up() -> None:
    root = Path(__file__).parent.parent.parent
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    sentences = [one for page in pages for one in re.findall(r"\S+ took [\d.]+ ms .* allowed: .*", page.read_text())]
    assert len(sentences) > 3
    assert [one for one in sentences if parts_exceed(one)] == []


def test_a_sentence_that_does_not_add_up_is_found() -> None:
    """As they were."""
    words = "preprocess took 467.1 ms of 665.9 ms, 250 ms allowed: 377.6 ms blocked in a socket, a file, a sleep or a "
    assert parts_exceed(words + "subprocess, 111.3 ms not explained by any reading")
    assert not parts_exceed(words + "subprocess, 85.5 ms waiting for a CPU")
    said = words.replace("allowed: ", "allowed; of the request's 665.9 ms: ")
    assert not parts_exceed(said + "subprocess, 111.3 ms not explained by any reading")


BUDGETS = st.dictionaries(st.sampled_from(STAGES), st.integers(1, 60), max_size=3)


@given(made=requests(), budgets=BUDGETS, within=st.integers(1, 60), normal=st.none() | requests())
def test_the_parts_of_a_sentence_are_those_of_what_it_names(
    made: Any, budgets: dict[str, int], within: int, normal: Any
) -> None:
    """Whatever the policy, and whether or not there is a baseline."""
    breakdown, learned = drawn(made), Baselines()
    took = sum(breakdown.stages.values())
    if normal is not None:
        for number in range(ENOUGH):
            learned.add(ROUTE, number, drawn(normal))
    within_ns = min(within * MS, took - 1)
    judged_by = Objective("o", None, "*", within_ns, stages=tuple((name, ms * MS) for name, ms in budgets.items()))
    verdict = judge(judged_by, *decide(judged_by, took), breakdown.stages, expected=learned.stages(ROUTE))
    found = learned.explain(ROUTE, verdict, breakdown)
    sentence, stage, cause = (found[f"sla.breach.{name}"] for name in ("evidence", "stage", "cause"))
    assert stage in breakdown.stages
    assert sentence.startswith(f"{stage} took {breakdown.stages[stage] / 1e6:.1f} ms"), sentence
    assert not parts_exceed(sentence), sentence
    over = {name: breakdown.stages[name] - ms * MS for name, ms in budgets.items() if name in breakdown.stages}
    if any(ns > 0 for ns in over.values()):
        assert over[stage] == max(over.values())
        assert "of the request's" not in sentence
    if cause in breakdown.within(stage).times and "of the request's" not in sentence:
        first = re.search(r"allowed: ([\d.]+) ms", sentence)
        assert first, sentence
        assert float(first[1]) == pytest.approx(breakdown.within(stage).times[cause] / 1e6, abs=0.051)
