"""What another process did for a request reaches its record: by the side channel, in order, and never at a price."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from stagetrace import log
from stagetrace.request import remote_socket as channel
from stagetrace.request import remote_stages as elsewhere
from stagetrace.request.remote_socket import Line, Listener
from stagetrace.request.remote_stages import RequestRef, hand_on, is_here, report_stages
from stagetrace.request.request import Request
from stagetrace.request.worker import Batch, Work
from stagetrace.semconv import PREPARE, TRANSFORM
from stagetrace.system.access import credentials
from stagetrace.tracing.span_context import SpanContext, TraceFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.request.stages import Segment

pytestmark = pytest.mark.skipif(not channel.WORKS, reason="the side channel needs Linux")
ENTRY = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
LINK = (7, 8, 1)


def request(start: int) -> Request:
    record = Request(start=start)
    record.bind(ENTRY, start)
    return record


def shape(segments: list[Segment]) -> list[tuple[str, int]]:
    return [(segment.stage, segment.end - segment.start) for segment in segments]


def in_a_fork(work: object) -> int:
    """Run a function in a process of its own, to its end; return the process id."""
    process = os.fork()
    if process == 0:
        try:
            work()  # type: ignore[operator]
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    return process


def test_a_request_that_ends_before_its_batch_has_been_in_it_until_then() -> None:
    now = time.time_ns()
    record = request(now - 1_000)
    key = hand_on(record, "batch", now)
    batch = Batch([RequestRef(key, ENTRY)], 2, "batch", start=now + 100)
    batch.report_begin("inference", now + 100)
    segments = record.close(now - 1_000, now + 1_000).segments()
    assert shape(segments) == [("preprocess", 1_000), ("queue", 100), ("inference", 900)]
    assert segments[1].attributes == {"queue.reason": "batch"}
    assert segments[2].attributes == {"ml.batch.size": 2}
    assert segments[2].link == SpanContext(batch.entry.trace_id, batch.entry.span_id, True, TraceFlags(1))  # type: ignore[union-attr]  # noqa: FBT003


def test_a_request_that_was_handed_on_begins_with_its_wait() -> None:
    record = Request(start=2_000)
    record.bound = True
    record.wait_since(1_000, 2_500, {"queue.reason": "worker"})
    assert record.started == 1_000
    assert shape(record.close(1_000, 3_000).segments()) == [("queue", 1_500), ("handler", 500)]


def test_a_forked_worker_tells_in_time() -> None:
    """By the time that it has ended, all is there; stages have the ids that it gave out, and its links."""
    now = time.time_ns()
    record = request(now - 1_000)
    key = hand_on(record, "worker", now)
    assert is_here(key)
    stages = [("inference", now + 300, now + 500, {"ml.model.name": "m"}, 99, LINK)]
    in_a_fork(lambda: report_stages(key, "", now + 100, stages, is_over=True))
    segments = record.close(now - 1_000, now + 1_000).segments()
    assert shape(segments) == [
        ("preprocess", 1_000),
        ("queue", 100),
        ("preprocess", 200),
        ("inference", 200),
        ("postprocess", 500),
    ]
    assert segments[1].attributes == {"queue.reason": "worker"}
    assert segments[3].context == SpanContext(1, 99, is_remote=False, trace_flags=TraceFlags(1))
    assert segments[3].link == SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))
    assert record.stages.model == {"ml.model.name": "m"}


@pytest.mark.parametrize("activity", [TRANSFORM, PREPARE])
def test_a_worker_that_dies_has_reported_no_transform_whose_stage_is_not_settled(activity: str) -> None:
    now = time.time_ns()
    record = request(now)
    key = hand_on(record, "worker", now)

    def begin() -> None:
        work = Work(RequestRef(key, ENTRY), start=now + 100)
        work.enter(activity, {"ml.model.name": "Scaler"}, now + 200)
        work.leave(activity, now + 300)
        work.report_begin("inference", now + 400)

    in_a_fork(begin)
    assert shape(record.close(now, now + 1_000).segments()) == [
        ("queue", 100),
        ("preprocess", 300),
        ("inference", 600),
    ]


def test_a_worker_that_dies_leaves_its_last_stage_open() -> None:
    now = time.time_ns()
    record = request(now)
    key = hand_on(record, "worker", now)
    in_a_fork(
        lambda: report_stages(key, "", now + 100, [("inference", now + 300, None, {}, None, None)], is_over=False)
    )
    segments = record.close(now, now + 1_000).segments()
    assert shape(segments) == [("queue", 100), ("preprocess", 200), ("inference", 700)]
    assert record.stages.model == {"ml.worker.lost": True}


def test_what_is_still_in_the_queue_of_a_server_waits() -> None:
    """If workers of this process are known to report; else nothing is known of it."""
    now = time.time_ns()
    waiting = request(now)
    hand_on(waiting, "worker", now, is_server=True)
    answered = request(now)
    key = hand_on(answered, "worker", now, is_server=True)
    assert answered.remote_stages is not None
    answered.remote_stages.response_arrived(key)
    person = request(now)
    hand_on(person, "", now)
    in_a_fork(lambda: report_stages(key, "", now, [], is_over=False))
    assert shape(waiting.close(now, now + 1_000).segments()) == [("queue", 1_000)]
    assert shape(person.close(now, now + 1_000).segments()) == [("handler", 1_000)]


def test_what_is_reported_counts_in_the_order_of_time() -> None:
    """A mark of the request's own, noted before the report, stays where it was."""
    ms = 1_000_000
    record = request(0)
    key = hand_on(record, "", 1)
    record.enter("network.send", at=600 * ms)
    record.leave("network.send", at=700 * ms)
    report_stages(key, "batch", 100 * ms, [("inference", 200 * ms, 500 * ms, {}, None, None)], is_over=True)
    assert shape(record.close(0, 1_000 * ms).segments()) == [
        ("preprocess", 1),
        ("queue", 100 * ms - 1),
        ("preprocess", 100 * ms),
        ("inference", 300 * ms),
        ("postprocess", 100 * ms),
        ("network.send", 100 * ms),
        ("postprocess", 300 * ms),
    ]


def test_an_activity_is_presumed_until_taken_back() -> None:
    record = request(0)
    record.begin_tentative("inference", {"ml.model.name": "m"}, 100)
    record.cancel_tentative("inference")
    record.begin_tentative("inference", {"ml.model.name": "m"}, 300)
    record.enter("inference", {"ml.framework": "sklearn"}, 400)
    record.leave("inference", 500)
    record.clock = lambda: 600
    record.end_tentative("inference")
    record.end_tentative("inference")
    record.clock = lambda: 1_000
    assert shape(record.close(0, 1_000).segments()) == [("preprocess", 300), ("inference", 300), ("postprocess", 400)]
    assert record.stages.model == {"ml.model.name": "m", "ml.framework": "sklearn"}


def test_a_child_span_makes_what_was_presumed_true() -> None:
    record = request(0)
    record.begin_tentative("inference", None, 100)
    parent = record.stage_context()
    record.clock = lambda: 700
    record.end_tentative("inference")
    record.clock = lambda: 1_000
    segments = record.close(0, 1_000).segments()
    assert shape(segments) == [("preprocess", 100), ("inference", 600), ("postprocess", 300)]
    assert segments[1].context == parent


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener(f"test-{os.getpid()}-{time.monotonic_ns()}")
    yield made
    made.close()


def word_of(listener: Listener) -> str:
    return str(listener._socket.getsockname().decode().removeprefix("\0stagetrace-"))


def test_nobody_waits_for_a_listener_that_does_not_listen(listener: Listener) -> None:
    """What does not fit waits with the sender; once the listener reads, the newest arrive, in order."""
    line = Line(word_of(listener))
    for number in range(2_000):
        line.send(str(number).encode())
    received: list[int] = []
    for _ in range(3):
        listener.read(lambda message, _: received.append(message))
        line.send(b"2000")
    listener.read(lambda message, _: received.append(message))
    assert received == sorted(received)
    assert 1_999 in received
    assert 0 in received
    assert len(received) < 2_000
    line.close()


def test_a_line_to_nobody_costs_nothing() -> None:
    line = Line("no such word")
    line.send(b"1")
    line.send(b"2")
    assert line._is_dead


def test_what_is_no_message_is_passed_over(listener: Listener) -> None:
    other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.connect(f"\0stagetrace-{word_of(listener)}")
    for message in (b"{", b"\xff", b"3"):
        other.send(message)
    received: list[int] = []
    listener.read(lambda message, _: received.append(message))
    assert received == [3]
    other.close()
    listener.read(lambda message, _: received.append(message))
    assert os.getpid() in listener.gone


def another_user(connected: socket.socket) -> tuple[int, int, int]:
    """Return the credentials of the other end as if it ran as another user; not as root, whom both ends trust."""
    process, _, group = credentials(connected)
    return process, os.geteuid() + 1000, group


@pytest.mark.parametrize("who", ["nobody", "root", "the same user"])
def test_a_listener_reads_nothing_of_another_user(
    who: str, listener: Listener, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fault injection, for tests may run as root: the kernel's report of the peer is replaced."""
    users = {"nobody": os.geteuid() + 1000, "root": 0, "the same user": os.geteuid()}
    monkeypatch.setattr(channel, "credentials", lambda _: (os.getpid(), users[who], 0))
    monkeypatch.setattr(log, "_logged", set())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(channel._address(word_of(listener)))
        stranger.send(b'"secret"')
        got: list[object] = []
        listener.read(lambda message, _: got.append(message))
        assert got == ([] if who == "nobody" else ["secret"])
        if who == "nobody":
            with pytest.raises(ConnectionResetError):  # it was closed, with what was sent in it
                stranger.recv(1)
    refused = f"is at the other end of a channel of this service, whose user is {os.geteuid()}"
    assert (refused in capfd.readouterr().err) == (who == "nobody")


def test_a_line_sends_nothing_to_a_listener_of_another_user(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who knows the word of a request can listen first, in place of the server; its process is dead to the line."""
    monkeypatch.setattr(channel, "credentials", another_user)
    monkeypatch.setattr(log, "_logged", set())
    line = Line(word_of(listener))
    for _ in range(2):
        line.send(b'"secret"')
    monkeypatch.setattr(channel, "credentials", credentials)
    got: list[object] = []
    listener.read(lambda message, _: got.append(message))
    assert (got, line._is_dead, line._socket, len(line._waiting)) == ([], True, None, 0)
    assert capfd.readouterr().err.count("nothing is read from it or sent to it") == 1


def test_each_process_has_its_own_word() -> None:
    """A request that was handed on before a fork is the parent's."""
    key = hand_on(request(0))
    reading, writing = os.pipe()
    in_a_fork(lambda: os.write(writing, b"here" if is_here(key) else b"gone"))
    assert os.read(reading, 4) == b"gone"
    assert is_here(key)
    assert elsewhere.find(key) is None  # nobody else holds it
