"""Where a worker stands for a late request reaches the request: at once, bounded, and never at a price."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace.request import remote_socket, remote_stages
from stagetrace.request.in_flight import NEVER, Bounds, in_flight
from stagetrace.request.remote_stages import MAX_KEYS, RequestRef, bounds_of, entry_of, hand_on, report_stages
from stagetrace.request.request import Request
from stagetrace.request.stalls import (
    BLOCKER,
    MOST_BYTES,
    MOST_KEPT,
    REQUEST,
    RESUMED,
    RemoteStalls,
    Stall,
    StallReporter,
)
from stagetrace.request.worker import Batch, Work
from stagetrace.sources.stacks import NamedCode
from stagetrace.tracing.span_context import SpanContext, TraceFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not remote_socket.WORKS, reason="the side channel needs Linux")
ENTRY = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
SECOND = 10**9


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that samples nothing by itself; requests are late after one second, slow after half of one."""
    monkeypatch.setattr(in_flight, "is_watched", True)
    monkeypatch.setattr(in_flight, "requests", set())  # none of other tests; so below
    monkeypatch.setattr(in_flight, "parts", {})
    monkeypatch.setattr(in_flight, "due", NEVER)
    monkeypatch.setattr(in_flight, "timer", None)
    monkeypatch.setattr(in_flight, "ends_at", NEVER)
    monkeypatch.setattr(in_flight, "_start", lambda _: None)
    monkeypatch.setattr(in_flight, "bounds_of", lambda record: Bounds(record.started, SECOND // 2, SECOND))


def place(line: int, path: str = "/srv/app.py", name: str = "predict") -> tuple[Any, int]:
    return NamedCode(path, name, f"Model.{name}", 0), line


def stall(at: int, line: int, of: str = REQUEST) -> Stall:
    return Stall(at, of, (place(line), place(1, "/srv/main.py", "main")))


def request(start: int) -> Request:
    record = Request(start=start)
    in_flight.end(record)
    record.bind(ENTRY, start)
    return record


@contextmanager
def in_a_fork(work: Callable[[], None]) -> Iterator[None]:
    """Run a function in a process that ends only after the block, without a trace of it."""
    done, write_done = os.pipe()
    read_end, end = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work()
            os.write(write_done, b".")
            os.read(read_end, 1)
        finally:
            os._exit(0)
    assert os.read(done, 1) == b"."
    try:
        yield
    finally:
        os.write(end, b".")
        os.waitpid(process, 0)
        for one in (done, write_done, read_end, end):
            os.close(one)


def lines(record: Request) -> list[tuple[str, int]]:
    """Return whose the stalls of a request are, and the line that each is at."""
    return [(one.of, one.stack[0][1]) for one in record.stalls]


def test_a_key_says_when_its_request_is_late() -> None:
    record = request(5 * SECOND)
    key = hand_on(record, "worker")
    assert bounds_of(key) == Bounds(5 * SECOND, SECOND // 2, SECOND)
    assert entry_of(key, ENTRY).span_id == ENTRY.span_id
    assert remote_stages.find(key) is record


def test_a_request_that_stays_here_says_nothing_of_it() -> None:
    assert bounds_of(hand_on(request(0), conclude=lambda: None)) is None


@pytest.mark.parametrize(
    "key",
    [
        "0123456789abcdef-1-0000000000000002",
        *("", "of-some-other-kind", "a-b-c.d-e", "a-b--e", "a-b-1.2.3.4-e"),
        *("a-b-1.0.3-e", "a-b-1.4.3-e", "a-b--1.2.3-e", f"a-b-1.2.{'f' * 16}-e", f"a-b-1.2.{'f' * 9_000}-e"),
    ],
)
def test_the_key_of_an_older_process_does_not_say_it(key: str) -> None:
    """And nothing is sampled, or reported, for such a request."""
    assert bounds_of(key) is None
    work = Work(RequestRef(key, ENTRY))
    assert (work.bounds, work in in_flight.parts, work in in_flight.requests) == (None, False, False)
    work.finish()


def test_work_is_late_when_its_request_is() -> None:
    """Not one that begins after that: such work is late as it begins."""
    now = time.time_ns()
    soon = Work(RequestRef(hand_on(request(now), "worker"), ENTRY), start=now)
    late = Work(RequestRef(hand_on(request(now - 2 * SECOND), "worker"), ENTRY), start=now)
    references = [RequestRef(hand_on(request(now - wait), "batch"), ENTRY) for wait in (0, 300, 100)]
    batch = Batch(references, 3, start=now)
    assert in_flight.parts == {soon: now + SECOND // 2, late: now, batch: now - 300 + SECOND // 2}
    assert in_flight.take(now) == [late]
    for one in (soon, late, batch):
        one.finish()
    assert in_flight.parts == {}


def test_where_a_worker_stands_is_known_while_it_works() -> None:
    """And is what the request stood at: meanwhile it only waited."""
    now = time.time_ns()
    record = request(now - 100)
    key = hand_on(record, "worker", now)
    record.stalls = [stall(now - 50, 3), stall(now + 20, 3), stall(now + 20, 9, BLOCKER), stall(now + 60, 3)]

    def work() -> None:
        doing = Work(RequestRef(key, ENTRY), start=now + 10)
        doing.report_begin("inference", now + 10)
        doing.add_stalls([stall(now + 30, 41)])
        doing.add_stalls([stall(now + 50, 41), stall(now + 50, 42, BLOCKER)])

    with in_a_fork(work):
        record.close(now - 100, now + 1_000)
    assert lines(record) == [
        (REQUEST, 3),
        (BLOCKER, 9),
        (REQUEST, 41),
        (REQUEST, 41),
        (BLOCKER, 42),
    ]
    assert record.stalls[2].stack == stall(0, 41).stack


def test_what_the_request_does_after_the_work_is_its_own() -> None:
    now = time.time_ns()
    record = request(now)
    key = hand_on(record, "worker", now)

    def work() -> None:
        doing = Work(RequestRef(key, ENTRY), start=now + 10)
        doing.add_stalls([stall(now + 30, 41)])
        doing.finish()

    with in_a_fork(work):
        record.stalls = [stall(now + 20, 3), stall(time.time_ns(), 7)]
        record.close(now, now + 10 * SECOND)
    assert lines(record) == [(REQUEST, 41), (REQUEST, 7)]


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "in another process"])
def test_a_batch_has_one_stack_for_all_of_its_requests(*, is_here: bool) -> None:
    now = time.time_ns()
    records = [request(now) for _ in range(3)]
    references = [RequestRef(hand_on(one, "batch", now), ENTRY) for one in records]

    def work() -> None:
        batch = Batch(references, 3, "batch", start=now + 10)
        batch.report_begin("inference", now + 10)
        batch.add_stalls([stall(now + 30, 41)])
        if is_here:
            batch.finish()

    if is_here:
        work()
    else:
        with in_a_fork(work):
            records[0].close(now, now + 100)
    for one in records:
        one.close(now, now + 100)
        assert lines(one) == [(REQUEST, 41)]


def test_a_batch_may_be_of_more_requests_than_a_message_holds() -> None:
    now = time.time_ns()
    records = [request(now) for _ in range(2 * MAX_KEYS + 1)]
    references = [RequestRef(hand_on(one, "batch", now), ENTRY) for one in records]
    with in_a_fork(lambda: Batch(references, len(records), start=now + 10).add_stalls([stall(now + 30, 41)])):
        for one in records:
            one.close(now, now + 100)
    assert {tuple(lines(one)) for one in records} == {((REQUEST, 41),)}


def test_equal_code_of_two_files_is_not_taken_for_the_same() -> None:
    source = "def predict():\n    pass\n"
    codes = [next(iter(compile(source, path, "exec").co_consts)) for path in ("/srv/one.py", "/srv/two.py")]
    assert codes[0] == codes[1]
    reporter, taken = StallReporter(), RemoteStalls()
    found = taken.read(reporter.reports(Stall(at, REQUEST, ((code, 2),)) for at, code in enumerate(codes)))
    assert [one.stack[0][0].co_filename for one in found] == ["/srv/one.py", "/srv/two.py"]


def test_a_batch_of_requests_of_another_process_is_known_once() -> None:
    """Both the request in a worker and its batch there are sampled: they stand at the same line at the same moment."""
    now = time.time_ns()
    record = request(now)
    key = hand_on(record, "worker", now)

    def work() -> None:
        doing = Work(RequestRef(key, ENTRY), start=now + 10)
        batch = Batch([RequestRef(hand_on(doing, at=now + 20), ENTRY)], 1, start=now + 20)
        for one in (doing, batch):
            one.add_stalls([stall(now + 30, 41)])
        batch.add_stalls([stall(now + 40, 42)])

    with in_a_fork(work):
        record.close(now, now + 100)
    assert [line for _, line in lines(record)] == [41, 42]


def test_a_request_is_not_at_what_it_may_not_have_waited_for() -> None:
    """Of what resumes it elsewhere nobody knows: it has waited for that if it ends soon after."""
    own = [stall(100, 3), stall(200, 3)]
    beside = [(REQUEST, 100), (RESUMED, 150), (REQUEST, 200)]
    resumed = RemoteStalls()
    resumed.add([stall(150, 41, RESUMED)])
    assert [(one.of, one.at) for one in resumed.among(own, 0, 300)] == beside
    resumed.add((), 230)
    assert [(one.of, one.at) for one in resumed.among(own, 0, 300)] == beside
    assert [(one.of, one.at) for one in resumed.among(own, 0, 240)] == [(REQUEST, 100), (REQUEST, 150)]


def test_a_request_waits_for_work_that_has_reported_no_stage() -> None:
    """As one that gives up before its batch, of `stagetrace.batch` in another process, is done."""
    now = time.time_ns()
    record = request(now)
    key = hand_on(record, at=now)
    record.stalls = [stall(now + 20, 3), stall(now + 50, 3)]

    def work() -> None:
        Batch([RequestRef(key, ENTRY)], 1, start=now + 10).add_stalls([stall(now + 30, 41)])

    with in_a_fork(work):
        record.close(now, now + 100)
    assert [line for _, line in lines(record)] == [3, 41]


def test_stacks_of_one_piece_of_work_are_bounded() -> None:
    """A stack goes once, and those that do not fit not at all; a report fits into a message."""
    reporter = StallReporter()
    deep = [Stall(at, REQUEST, tuple(place(one, f"/srv/{at}.py", "f" * 90) for one in range(64))) for at in range(20)]
    reports = reporter.reports([*deep, deep[0]])
    assert [report[3] is None for report in reports] == [*[False] * (len(reports) - 1), True]
    assert 1 < len(reports) < 20
    assert len(json.dumps(reports)) < MOST_BYTES * 1.3


def test_stalls_that_are_taken_in_are_bounded() -> None:
    taken = RemoteStalls()
    for at in range(100):
        stacks = [[["/x.py" * 500], [[0, line, "f" * 9_000, "g" * 9_000, 0] for line in range(200)]], None]
        taken.add(taken.read([[at, REQUEST, at, stacks[0], [0]], [at, REQUEST, at, stacks[1], [1]]]))
    assert len(taken.stalls) == MOST_KEPT
    assert {len(one.stack) for one in taken.stalls} == {64}
    texts = [text for one in taken.stalls for code, _ in one.stack for text in (code.co_filename, code.co_name)]
    assert max(map(len, texts)) <= 512


def test_a_stall_whose_stack_was_lost_is_not_made_up() -> None:
    reporter, taken = StallReporter(), RemoteStalls()
    lost, first, again = (reporter.reports([stall(at, line)]) for at, line in ((1, 41), (2, 42), (3, 41)))
    assert lost
    found = taken.read(json.loads(json.dumps([*first, *again])))
    assert [(one.at, one.stack) for one in found] == [(2, stall(0, 42).stack)]


@pytest.mark.parametrize(
    "message",
    [
        "[1,2,3]",
        '[["KEY"],[[1,"request",7,null]],null]',
        '[["KEY"],[["x","request",7,[["/a.py"],[[0,1,"f","f",0]]],[0]]],null]',
        '[["KEY"],[[1,"request",7,[["/a.py"],[[3,1,"f","f",0]]],[0]]],null]',
        '[["KEY"],[[1,"nobody",7,[["/a.py"],[[0,1,"f","f",0]]],[0]]],null]',
        '[["KEY"],[[1,"request",7,[["/a.py"],[[0,1,"f","f",0]]],[0,1,2,3,4,5,6,7,8,9]]],null]',
        '[["KEY"],[],"never"]',
        '[["KEY"],' + "[" * 10_000 + "]" * 10_000 + ",null]",
    ],
)
def test_a_malformed_report_leaves_the_stages(message: str) -> None:
    """So do one that is too large, and one for a request that is not there."""
    now = time.time_ns()
    record = request(now)
    key = hand_on(record, "worker", now)

    def work() -> None:
        for word in (key, "unknown"):
            remote_socket.send(key.partition("-")[0], [], is_optional=True)
            raw = message.replace("KEY", word).encode()
            remote_socket._lines[key.partition("-")[0]].send(raw)
        remote_socket._lines[key.partition("-")[0]].send(b"[" + b" " * (remote_socket.MAX_MESSAGE + 9))
        report_stages(key, "", now + 100, [("inference", now + 300, now + 500, {}, None, None)], is_over=True)

    with in_a_fork(work):
        names = [one.stage for one in record.close(now, now + 1_000).segments()]
    assert "inference" in names
    assert not record.stalls


def test_stalls_leave_room_for_stages() -> None:
    """A process that does not listen for long gets the stages that were reported last, not the stalls."""
    now = time.time_ns()
    record = request(now)
    key = hand_on(record, "worker", now)

    def work() -> None:
        for at in range(200):
            doing = Work(RequestRef(key, ENTRY), start=now)
            doing.add_stalls([Stall(at, REQUEST, tuple(place(line, name="f" * 90) for line in range(60)))])
        doing.report_begin("inference", now + 10)

    with in_a_fork(work):
        names = [one.stage for one in record.close(now, now + 1_000).segments()]
    assert "inference" in names
    assert 0 < len(record.stalls) < 20


def test_what_is_over_is_not_looked_at_for_long() -> None:
    now = time.time_ns()
    work = Work(RequestRef(hand_on(request(now), "worker"), ENTRY), start=now)
    assert in_flight.ends_at <= now + SECOND // 2
    work.finish()
    in_flight.set_timer(now)
    assert in_flight.ends_at == NEVER or in_flight.requests


def test_a_worker_of_a_worker_is_where_the_request_stands() -> None:
    """As where a batch of the server's goes to a worker: the batch itself only waits from then on."""
    now = time.time_ns()
    record = request(now)
    batch = Batch([RequestRef(hand_on(record, "batch", now), ENTRY)], 1, "batch", start=now + 10)
    batch.report_begin("inference", now + 10)
    batch.add_stalls([stall(now + 11, 5)])
    key = hand_on(batch, "worker", now + 12)

    def work() -> None:
        doing = Work(RequestRef(key, ENTRY, is_batch=True), start=now + 20)
        doing.add_stalls([stall(now + 30, 41)])

    with in_a_fork(work):
        assert batch.remote_stages is not None
        batch.remote_stages.read_reports()
        batch.add_stalls([stall(now + 40, 5)])
    record.close(now, now + 100)
    assert [line for _, line in lines(record)] == [5, 41]
