"""The critical path: literal trees, a brute force of another construction, and skewed clocks set right."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stagetrace.analysis.span_tree import Unseen, path_of, span_tree, unseen_times
from stagetrace.store.base import SpanRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a test compares of a segment: span id, start, end.
Part = tuple[str, int, int]


@dataclass(frozen=True)
class Span:
    """What the analysis asks of a span, and no more."""

    span_id: str
    parent_span_id: str | None
    start_unix_nano: int
    end_unix_nano: int
    kind: str = "INTERNAL"
    service: str = "shop"
    resource: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    follows: bool = False

    @property
    def name(self) -> str:
        return f"span {self.span_id}"


def parts(*spans: Span) -> list[Part]:
    return [(one.span_id, one.start_unix_nano, one.end_unix_nano) for one in path_of(span_tree(spans)).segments]


A = Span("A", None, 0, 100)


def test_between_its_children_the_span_itself_is_on_the_path() -> None:
    """As Jaeger UI's first test case has it."""
    spans = Span("C", None, 1, 101), Span("D", "C", 20, 40), Span("E", "C", 50, 60)
    assert parts(*spans) == [("C", 1, 20), ("D", 20, 40), ("C", 40, 50), ("E", 50, 60), ("C", 60, 101)]


def test_of_concurrent_children_the_one_that_ended_last_was_waited_for() -> None:
    """Jaeger UI's second case: A ran beside C, and nothing waited for what it did before C started."""
    spans = Span("X", None, 1, 101), Span("A", "X", 10, 50), Span("C", "X", 20, 60)
    assert parts(*spans) == [("X", 1, 20), ("C", 20, 60), ("X", 60, 101)]


@pytest.mark.parametrize("child", [(140, 180), (-11, -4), (100, 120), (-5, 0), (50, 50), (60, 40)])
def test_a_child_outside_of_its_parent_or_of_no_duration_is_not_on_it(child: tuple[int, int]) -> None:
    """Nor is what is below it, wherever that is: Jaeger UI's cases 3, 4 and 9."""
    assert parts(A, Span("B", "A", *child), Span("C", "B", 10, 20)) == [("A", 0, 100)]


def test_a_child_that_outlives_its_parent_counts_within_it() -> None:
    """Jaeger UI's cases 6 and 7: each span is cut to its parent, as that is cut to its own."""
    late = Span("A", None, 1, 30), Span("B", "A", 15, 35), Span("C", "B", 10, 25)
    assert parts(*late) == [("A", 1, 15), ("C", 15, 25), ("B", 25, 30)]
    later = Span("A", None, 1, 30), Span("B", "A", 15, 35), Span("C", "B", 20, 40)
    assert parts(*later) == [("A", 1, 15), ("B", 15, 20), ("C", 20, 30)]


def test_a_child_around_its_parent_covers_it() -> None:
    """Jaeger UI's case 8."""
    assert parts(Span("A", None, 10, 30), Span("B", "A", 5, 35)) == [("B", 10, 30)]


def test_siblings_that_touch_are_both_on_it() -> None:
    spans = A, Span("B", "A", 0, 30), Span("C", "A", 30, 30), Span("D", "A", 30, 90), Span("E", "A", 90, 100)
    assert parts(*spans) == [("B", 0, 30), ("D", 30, 90), ("E", 90, 100)]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 5100), (5000, 10_000), [("B", 0, 5000), ("C", 5000, 10_000)]),  # by 1 % of the parent
        ((0, 5101), (5000, 10_000), [("A", 0, 5000), ("C", 5000, 10_000)]),  # by more
        ((4950, 5020), (5000, 5060), [("A", 0, 4950), ("B", 4950, 5000), ("C", 5000, 5060), ("A", 5060, 10_000)]),
        ((4990, 5050), (5000, 5060), [("A", 0, 5000), ("C", 5000, 5060), ("A", 5060, 10_000)]),  # most of their time
        ((5000, 5050), (5000, 9000), [("A", 0, 5000), ("C", 5000, 9000), ("A", 9000, 10_000)]),  # begun together
    ],
)
def test_siblings_that_overlap_by_a_tick_are_one_after_another(
    first: tuple[int, int], second: tuple[int, int], expected: list[Part]
) -> None:
    """As in CRISP: up to 1 % of the parent, but not where they ran side by side most of their time."""
    spans = Span("A", None, 0, 10_000), Span("B", "A", *first), Span("C", "A", *second)
    assert parts(*spans) == expected


def test_what_is_below_a_sibling_is_cut_where_the_next_one_starts() -> None:
    spans = (
        Span("A", None, 0, 10_000),
        Span("B", "A", 0, 5040),
        Span("D", "B", 4000, 5040),
        Span("C", "A", 5000, 10_000),
    )
    assert parts(*spans) == [("B", 0, 4000), ("D", 4000, 5000), ("C", 5000, 10_000)]


def test_of_children_that_end_together_the_longest_is_taken() -> None:
    assert parts(A, Span("B", "A", 50, 90), Span("C", "A", 20, 90)) == [("A", 0, 20), ("C", 20, 90), ("A", 90, 100)]


def test_what_starts_together_is_distinguished_by_its_end() -> None:
    spans = A, Span("B", "A", 0, 60), Span("C", "A", 0, 100), Span("D", "C", 0, 60)
    assert parts(*spans) == [("D", 0, 60), ("C", 60, 100)]


def test_a_consumer_is_not_waited_for() -> None:
    """Its producer is: to send a message takes the sender's time."""
    sent = Span("B", "A", 10, 20, "PRODUCER"), Span("C", "B", 12, 18, "CONSUMER")
    spans = (A, *sent, Span("D", "A", 30, 90, "CONSUMER"))
    assert parts(*spans) == [("A", 0, 10), ("B", 10, 20), ("A", 20, 100)]
    assert parts(replace(spans[3], parent_span_id=None)) == [("D", 30, 90)]


def test_what_follows_its_parent_is_not_waited_for() -> None:
    """Jaeger UI's case 5."""
    spans = Span("A", None, 1, 31), Span("B", "A", 10, 20, follows=True), Span("C", "B", 12, 18)
    assert parts(*spans) == [("A", 1, 31)]


@pytest.mark.parametrize(("calls", "took_ms", "is_waited_for"), [(2, 30.0, False), (2, 39.0, True), (1, 1.0, True)])
def test_a_detail_of_calls_with_time_between_them_is_not_waited_for(
    calls: int, took_ms: float, is_waited_for: bool
) -> None:
    """That time is its stage's; nobody knows which part of it."""
    ms = 1_000_000
    attributes = {"stagetrace.detail.calls": calls, "stagetrace.detail.time_ms": took_ms}
    spans = replace(A, end_unix_nano=100 * ms), Span("D", "A", 10 * ms, 50 * ms, attributes=attributes)
    assert ("D" in {name for name, _, _ in parts(*spans)}) is is_waited_for


def test_client_and_server_with_one_id_are_one_below_the_other() -> None:
    """Zipkin's way: the spans of each service go on below their own."""
    spans = (
        A,
        Span("B", "A", 10, 60, "CLIENT", "shop"),
        Span("B", "A", 20, 50, "SERVER", "users"),
        Span("C", "B", 25, 45, "INTERNAL", "users"),
        Span("D", "B", 52, 58, "INTERNAL", "shop"),
    )
    found = [(one.place, one.start_unix_nano, one.end_unix_nano) for one in path_of(span_tree(spans)).segments]
    first, rest = [(0, 0, 10), (1, 10, 20), (2, 20, 25), (3, 25, 45), (2, 45, 50)], [(1, 50, 52), (4, 52, 58)]
    assert found == [*first, *rest, (1, 58, 60), (0, 60, 100)]


def test_a_span_that_comes_twice_counts_once() -> None:
    spans = A, Span("B", "A", 10, 90), Span("B", "A", 10, 90), Span("C", "B", 20, 30)
    assert parts(*spans) == [("A", 0, 10), ("B", 10, 20), ("C", 20, 30), ("B", 30, 90), ("A", 90, 100)]
    assert span_tree(spans).copies == 1


def test_of_several_roots_the_first_without_a_parent_is_the_traces() -> None:
    """The parent of an orphan was lost, so it is no root of the trace, however early it starts."""
    spans = Span("O", "lost", 0, 500), Span("B", None, 20, 90), Span("C", None, 20, 95), Span("D", None, 30, 400)
    path = path_of(span_tree(spans))
    assert [(one.span_id, one.start_unix_nano, one.end_unix_nano) for one in path.segments] == [("C", 20, 95)]
    assert path.other_roots == 3
    assert parts(spans[0], Span("P", "lost", 0, 700)) == [("P", 0, 700)]


def test_the_path_of_another_span_is_that_of_what_is_below_it() -> None:
    tree = span_tree([A, Span("B", "A", 10, 90), Span("C", "B", 20, 30)])
    found = [(one.span_id, one.start_unix_nano, one.end_unix_nano) for one in path_of(tree, 1).segments]
    assert found == [("B", 10, 20), ("C", 20, 30), ("B", 30, 90)]


def test_circles_are_on_no_path_and_nothing_hangs() -> None:
    circle = Span("B", "C", 0, 1), Span("C", "B", 0, 1), Span("S", "S", 0, 1)
    assert parts(*circle[:2]) == []
    assert parts(A, *circle) == [("A", 0, 100)]
    assert path_of(span_tree([A, *circle])).circular == 2
    assert parts() == []


def test_a_very_deep_trace_and_a_very_wide_one() -> None:
    deep = [Span("0", None, 0, 10**6), *(Span(str(n), str(n - 1), n, 10**6 - n) for n in range(1, 10_000))]
    assert len(path_of(span_tree(deep)).segments) == 19_999
    wide = [Span("0", None, 0, 10**6), *(Span(str(n), "0", 10 * n, 10 * n + 10) for n in range(1, 10_000))]
    assert len(path_of(span_tree(wide)).segments) == 10_001


def test_what_ends_before_it_starts_is_counted() -> None:
    path = path_of(span_tree([A, Span("B", "A", 60, 40), Span("C", "lost", 60, 40)]))
    assert (path.negative, path.other_roots) == (1, 1)


@pytest.mark.parametrize(
    ("server", "moved"),
    [
        ((500, 540), -480),  # wholly outside: to the middle of [10, 70]
        ((-20, 20), 40),
        ((5, 45), 15),  # partly
        ((20, 60), 0),  # inside
        ((0, 90), 10),  # longer than its client: to its start
        ((20, 90), 0),  # ... and where it starts later, cut
    ],
)
def test_a_server_span_is_moved_into_its_client(server: tuple[int, int], moved: int) -> None:
    spans = (
        A,
        Span("B", "A", 10, 70, "CLIENT"),
        Span("C", "B", *server, "SERVER", "users"),
        Span("D", "C", server[0] + 5, server[0] + 15, "INTERNAL", "users"),
    )
    path = path_of(span_tree(spans))
    assert path.shifted_ns == ({2: moved, 3: moved} if moved else {})
    first, last = server[0] + moved, min(70, server[1] + moved)
    assert [one.start_unix_nano for one in path.segments if one.span_id == "D"] == [first + 5]
    assert max(one.end_unix_nano for one in path.segments if one.span_id == "C") == last


def test_a_server_span_of_another_service_is_waited_for_whatever_its_parent_is() -> None:
    spans = A, Span("B", "A", 500, 540, "SERVER", "users"), Span("C", "B", 510, 530, "INTERNAL", "users")
    assert parts(*spans) == [("A", 0, 30), ("B", 30, 40), ("C", 40, 60), ("B", 60, 70), ("A", 70, 100)]
    assert parts(A, Span("B", "A", 500, 540, "SERVER", "shop")) == [("A", 0, 100)]


def test_spans_of_one_host_have_one_clock() -> None:
    host = {"host.name": "a"}
    spans = A, Span("B", "A", 10, 70, "CLIENT", resource=host), Span("C", "B", 60, 80, "SERVER", "users", host)
    assert parts(*spans) == [("A", 0, 10), ("B", 10, 60), ("C", 60, 70), ("A", 70, 100)]


def test_an_asynchronous_span_of_another_service_stays_and_none_starts_before_its_cause() -> None:
    later, sooner = Span("B", "A", 90, 130, service="jobs"), Span("B", "A", -40, -20, service="jobs")
    assert parts(A, later) == [("A", 0, 90), ("B", 90, 100)]
    assert parts(A, sooner) == [("A", 0, 40), ("B", 40, 60), ("A", 60, 100)]


def brute_force(spans: Sequence[Span]) -> list[Part]:
    """Return the path by its definition, for each ns anew: the waited children as a fixed point, and recursion."""

    def waited(parent: Span, low: int, high: int) -> dict[str, tuple[int, int]]:
        cut = {
            one.span_id: (max(low, one.start_unix_nano), min(high, one.end_unix_nano))
            for one in spans
            if one.parent_span_id == parent.span_id and one.kind != "CONSUMER"
        }
        cut = {key: (start, end) for key, (start, end) in cut.items() if start < end}
        moments, chosen = {high}, dict[str, tuple[int, int]]()
        while True:
            for moment in moments:
                ended = [(-end, start, key) for key, (start, end) in cut.items() if end <= moment]
                if ended:
                    key = min(ended)[2]
                    chosen[key] = cut[key]
            more = {start for start, _ in chosen.values()}
            if more <= moments:
                return chosen
            moments |= more

    by_id = {one.span_id: one for one in spans}

    def owner(span: Span, low: int, high: int, moment: int) -> str:
        inside = [(key, start, end) for key, (start, end) in waited(span, low, high).items() if start <= moment < end]
        assert len(inside) <= 1
        return owner(by_id[inside[0][0]], inside[0][1], inside[0][2], moment) if inside else span.span_id

    root = next(one for one in spans if one.parent_span_id is None)
    found: list[Part] = []
    for moment in range(root.start_unix_nano, root.end_unix_nano):
        key = owner(root, root.start_unix_nano, root.end_unix_nano, moment)
        if found and found[-1][0] == key:
            found[-1] = (key, found[-1][1], moment + 1)
        else:
            found.append((key, moment, moment + 1))
    return found


HOST = {"host.id": "one, so that nothing is moved"}
KINDS = ("INTERNAL", "INTERNAL", "INTERNAL", "CLIENT", "SERVER", "PRODUCER", "CONSUMER")


def made(random: np.random.Generator) -> list[Span]:
    """Return a small tree: concurrent, touching, empty, backward, asynchronous spans, in and out of their parents."""
    spans = [Span("0", None, 3, 3 + int(random.integers(0, 32)), resource=HOST)]
    for number in range(1, int(random.integers(2, 14))):
        parent = spans[random.integers(len(spans)) * random.integers(2)]
        low, high = parent.start_unix_nano, max(parent.start_unix_nano, parent.end_unix_nano)
        starts = [int(random.integers(low - 2, high + 2)), low, *(one.end_unix_nano for one in spans)]
        start = starts[random.integers(len(starts))]
        end = start + int(random.integers(-1, (5, 8, 24)[random.integers(3)]))
        kind, service = KINDS[random.integers(len(KINDS))], "ab"[random.integers(2)]
        spans.append(Span(str(number), parent.span_id, start, end, kind, service, HOST))
    return spans


@pytest.mark.parametrize("seed", [18, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(9))])
def test_it_is_what_brute_force_finds_on_10_000_random_trees(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = []
    for _ in range(1000):
        spans = made(random)
        expected = brute_force(spans)
        assert parts(*(spans[place] for place in random.permutation(len(spans)))) == expected, spans
        lengths.append(len(expected))
    assert sum(length > 3 for length in lengths) > 100


def test_any_spans_give_a_partition_of_the_roots_interval_by_what_is_below_it() -> None:
    """Of hosts that are not known, so that services have clocks of their own."""
    random = np.random.default_rng(20)
    moved = 0
    for _ in range(1000):
        spans = [replace(one, resource={}) for one in made(random)]
        others = Span("other", "lost", -5, 40), Span("below it", "other", -5, 40)
        tree = span_tree([*spans, *others])
        path = path_of(tree)
        ends = [spans[0].start_unix_nano, *(one.end_unix_nano for one in path.segments)]
        assert ends[-1] == spans[0].end_unix_nano
        assert ends[:-1] == [one.start_unix_nano for one in path.segments]
        assert {one.place for one in path.segments} <= path.places <= set(range(len(spans)))
        moved += bool(path.shifted_ns)
    assert moved > 100


def calls(random: np.random.Generator) -> tuple[list[Span], list[Span]]:
    """Return a trace of services that call each other, as it was and as their clocks have it."""
    true = [Span("0", None, 0, 2000, "SERVER", "s0")]
    offsets = {"s0": 0}
    for number in range(1, 1 + 2 * int(random.integers(1, 5)), 2):
        parent = true[2 * random.integers(len(true) // 2 + 1)]
        low, high = parent.start_unix_nano, parent.end_unix_nano
        start = int(random.integers(low, (low + high) // 2 + 1))
        end = int(random.integers(start, high + 1))
        latency = int(random.integers(0, (end - start) // 2 + 1))
        client = Span(str(number), parent.span_id, start, end, "CLIENT", parent.service)
        server = Span(str(number + 1), client.span_id, start + latency, end - latency, "SERVER", f"s{number}")
        offsets[server.service] = int(random.choice([-1, 1]) * random.integers(20_000, 90_000) * number)
        true += [client, server]

    def seen(one: Span) -> Span:
        start, end = (at + offsets[one.service] for at in (one.start_unix_nano, one.end_unix_nano))
        return replace(one, start_unix_nano=start, end_unix_nano=end)

    return true, list(map(seen, true))


def test_where_latency_is_the_same_both_ways_skewed_clocks_are_set_right() -> None:
    random = np.random.default_rng(19)
    for _ in range(500):
        true, skewed = calls(random)
        assert parts(*skewed) == parts(*true), true


# --- Unseen time: what a stage waited for, as far as it is known, and where it is drawn.

MS = 10**6
CPU = {"stagetrace.cpu.time_ms": 30.0, "stagetrace.cpu.wait_ms": 15.0, "stagetrace.cpu.blocked_ms": 40.0}


def span(number: int, parent: int, name: str, start: int, end: int, **attributes: Any) -> SpanRow:
    kind = "SERVER" if not parent else "INTERNAL"
    return SpanRow(
        "t", str(number), str(parent) if parent else None, name, "svc", kind, start * MS, end * MS, attributes
    )


def stage(name: str, attributes: dict[str, Any] | None = None, *, until: int = 100) -> SpanRow:
    return span(2, 1, name, 0, until, **{"ml.stage": name, **(attributes or {})})


def of_stage(*spans: SpanRow, entry: dict[str, Any] | None = None) -> Unseen | None:
    """Return the unseen time of a stage that lasts 100 ms, with spans below it."""
    return unseen_times([span(1, 0, "POST /", 0, 100, **(entry or {})), *spans]).get(1)


def test_a_queue_waits_all_of_its_time() -> None:
    assert of_stage(stage("queue", {"queue.reason": "socket"})) == Unseen(
        (("in the socket, until the server read it", 100 * MS),), ((0, 100 * MS),)
    )
    found = of_stage(stage("queue", {"queue.reason": "thread_pool"}))
    assert found is not None
    assert found.waits == (("waiting for a thread", 100 * MS),)


def test_what_cpu_time_does_not_explain_is_unseen() -> None:
    """Of 100 ms 30 were computed, 15 lacked a CPU, 40 were blocked; 15 are unknown. By its old names, too."""
    found = of_stage(stage("inference", CPU))
    assert found is not None
    assert [took for _, took in found.waits] == [15 * MS, 40 * MS, 15 * MS]
    assert found.waits[-1][0] == "for an unknown reason"
    assert found.intervals == ((30 * MS, 100 * MS),)
    assert (
        of_stage(stage("inference", {name.removeprefix("stagetrace."): value for name, value in CPU.items()})) == found
    )


def test_spans_below_explain_time_and_are_not_hatched() -> None:
    """Two calls leave 40 ms free; it is drawn at the end of each free time, in proportion."""
    calls = (span(3, 2, "GET", 10, 40), span(4, 2, "GET", 30, 70))
    found = of_stage(stage("inference", {**CPU, "stagetrace.cpu.time_ms": 20.0}), *calls)
    assert found is not None
    assert sum(took for _, took in found.waits) == 20 * MS
    assert found.intervals == ((5 * MS, 10 * MS), (85 * MS, 100 * MS))


def test_spread_calls_explain_as_long_as_they_took() -> None:
    spread = span(3, 2, "tokenize x5", 0, 100, **{"stagetrace.detail.calls": 5, "stagetrace.detail.time_ms": 45.0})
    found = of_stage(stage("inference", CPU), spread)
    assert found is not None
    assert sum(took for _, took in found.waits) == 25 * MS


def test_a_device_that_computed_is_not_waited_for() -> None:
    assert of_stage(stage("inference", {**CPU, "stagetrace.device.time_ms": 100.0})) is None


def test_a_stage_without_readings_has_what_its_breach_is_blamed_on() -> None:
    """At most: the wait is the whole request's. Of a good request, and of another stage, nothing is known."""
    blame = {"sla.breach.stage": "handler", "sla.breach.cause": "io_wait", "sla.breach.part.io_wait_ms": 80.0}
    found = of_stage(stage("handler"), entry=blame)
    assert found == Unseen(
        (("blocked in a socket, a file, a sleep or a subprocess", 80 * MS),), ((20 * MS, 100 * MS),), at_most=True
    )
    assert of_stage(stage("handler"), entry={**blame, "sla.breach.stage": "preprocess"}) is None
    assert of_stage(stage("handler"), entry={**blame, "sla.breach.cause": "compute"}) is None
    assert of_stage(stage("handler")) is None
    assert of_stage(stage("handler", until=0), entry=blame) is None
