"""The spool: nothing lost while the Collector is away, across processes, and never a harm to the service."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from grpc import StatusCode
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource

from otlp.receiver import Receiver, Reply, partial_success, run_receiver
from stagetrace import guard, log
from stagetrace.otlp import sender as sender_module
from stagetrace.otlp import spool as spool_module
from stagetrace.otlp.backlog import STUCK_AFTER
from stagetrace.otlp.exporter import CountingExporter
from stagetrace.otlp.processor import EncodingSpanProcessor
from stagetrace.otlp.spool import Spool, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESOURCE = Resource({"service.name": "spooled"})
AWAY = Reply(code=StatusCode.UNAVAILABLE, details="away", takes=False)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what would make the tests wait; nothing is asserted of it."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setattr(sender_module, "LONGEST_BACKOFF_S", 0.2)
    monkeypatch.setattr(sender_module, "_LOOK_AGAIN_AFTER_S", 0.2)
    monkeypatch.setattr(sender_module, "_CLAIM_AGAIN_AFTER_S", 0.1)
    log._said.discard("spool")
    guard.failures.clear()


def span_named(name: str, padding: int = 0) -> bytes:
    from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

    span = Span(name=name)
    if padding:
        span.attributes.add(key="padding").value.string_value = "x" * padding
    return ScopeSpans(spans=[span]).SerializeToString()


def request(*names: str, padding: int = 0) -> bytes:
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for name in names:
        scope.MergeFromString(span_named(name, padding))
    return message.SerializeToString()


def names_in(data: bytes) -> list[str]:
    return [
        span.name
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def processor(receiver: Receiver, spool: Spool | None, **kwargs: Any) -> EncodingSpanProcessor:
    exporter = CountingExporter(GrpcExporter(endpoint=receiver.grpc, timeout=2), "there")
    exporter.watch()
    return EncodingSpanProcessor(exporter, spool=spool, **kwargs)


def put(made: EncodingSpanProcessor, *names: str, breach: bool = False) -> None:
    for name in names:
        made.put(RESOURCE, None, span_named(name), 1, breach=breach)


def assert_all_accounted_for(made: EncodingSpanProcessor, received: int) -> None:
    counts = made.counts()
    assert counts.pop("received") == received
    later = {"from_spool", "refused_from_spool"}
    assert sum(count for outcome, count in counts.items() if outcome not in later) == received, counts


def wait_for(ready: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))


# The folder.


def test_files_are_the_requests_and_nobody_elses(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spool = Spool(tmp_path / "deep" / "spool")
        data = request("a", "b")
        path = spool.write(data, 2, breach=True)
        spool.count(refused=1)
        assert spool.claim()
    finally:
        os.umask(before)
    assert path is not None
    assert path.read_bytes() == data
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in spool.folder.iterdir()} == {0o600}
    spool.release()


def test_names_sort_by_importance_and_age(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(4):
        spool.write(request(str(number)), 1, breach=number % 2 == 1)
    found = [spool.spooled(name) for name in spool.names()]
    contents = [names_in(spool.read(one) or b"") for one in found if one is not None]
    assert contents == [["1"], ["3"], ["0"], ["2"]]


def test_when_full_the_oldest_good_ones_go_first_and_breaches_last(tmp_path: Path) -> None:
    size = len(request("good 0", padding=1000))
    spool = Spool(tmp_path, max_bytes=size * 10)
    for number in range(6):
        assert spool.write(request(f"good {number}", padding=1000), 1, breach=False)
    for number in range(6):
        assert spool.write(request(f"bad {number:02}", padding=1000), 1, breach=True)

    def kept() -> list[str]:
        return [name for file in files(tmp_path) for name in names_in(file.read_bytes())]

    assert kept()[:6] == [f"bad {n:02}" for n in range(6)]
    good = [name for name in kept() if name.startswith("good")]
    assert good == [f"good {n}" for n in range(6 - len(good), 6)], "the oldest went first"
    for number in range(6, 16):
        assert spool.write(request(f"bad {number:02}", padding=1000), 1, breach=True)
    assert not [name for name in kept() if name.startswith("good")]
    assert kept() == [f"bad {n:02}" for n in range(16 - len(kept()), 16)]
    assert spool.write(request("good 9", padding=1000), 1, breach=False) is None, "no breach goes for a good one"
    found = state(tmp_path)
    assert found["dropped"] == 7
    assert found["dropped_breaches"] == 16 - found["breach_spans"]
    assert found["bytes"] <= size * 10


def test_a_batch_larger_than_the_spool_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=100)
    assert spool.write(request("x", padding=1000), 1, breach=True) is None
    assert state(tmp_path)["dropped_breaches"] == 1


def test_the_losses_outlive_the_process_and_many_may_count_at_once(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from stagetrace.otlp.spool import Spool
spool = Spool(Path(sys.argv[1]))
for _ in range(50):
    spool.count(dropped=2)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert state(tmp_path)["dropped"] == 300


def test_a_broken_file_of_counts_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_bytes(b"[nonsense")
    Spool(tmp_path).count(dropped=3)
    assert state(tmp_path)["dropped"] == 3
    (tmp_path / "counts.json").write_text(json.dumps({"dropped": None}))
    assert state(tmp_path)["dropped"] == 0


def test_there_is_nothing_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert set(state(tmp_path / "nowhere").values()) == {0}
    assert Spool(tmp_path / "nowhere").names() == []
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped"])
def test_a_damaged_file_is_set_aside_and_counted(damage: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    path = spool.write(request("a", "b", padding=100), 2, breach=False)
    assert path is not None
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[50] ^= 1
    path.write_bytes({"cut": bytes(data[:-1]), "emptied": b"", "flipped": bytes(data)}[damage])
    spooled = spool.spooled(path.name)
    assert spooled is not None
    assert spool.read(spooled) is None
    assert spool.names() == []
    assert state(tmp_path)["damaged"] == 2
    assert [file.name for file in tmp_path.glob("*.damaged")] == [f"{path.name}.damaged"]


def test_what_a_dead_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    old, new = tmp_path / ".good-1.otlp.tmp", tmp_path / ".good-2.otlp.tmp"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert Spool(tmp_path).names() == []
    assert [file.exists() for file in (old, new)] == [False, True]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "mine.otlp", "good-x-y-z-1.otlp"):
        (tmp_path / name).write_bytes(b"mine")
    spool = Spool(tmp_path, max_bytes=2000)
    for number in range(10):
        spool.write(request(str(number), padding=500), 1, breach=False)
    assert [spool.spooled(name) for name in spool.names() if "mine" in name or "x-y" in name] == [None, None]
    assert {"notes.txt", "mine.otlp"} <= {file.name for file in tmp_path.iterdir()}


def test_one_process_delivers_at_a_time_and_a_dead_ones_claim_is_free(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from stagetrace.otlp.spool import Spool
print(Spool(Path(sys.argv[1])).claim(), flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"True\n"
    spool = Spool(tmp_path)
    assert not spool.claim()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert spool.claim()
    assert spool.claim(), "ours already"
    assert not Spool(tmp_path).claim()
    spool.release()
    assert Spool(tmp_path).claim()


def test_a_claim_does_not_live_on_in_a_forked_child(receiver: Receiver, tmp_path: Path) -> None:
    """As when a service that delivers out of the spool forks a worker, and ends before it."""
    spool = Spool(tmp_path)
    spool.write(request("left"), 1, breach=False)
    receiver.always = Reply(pause_s=0.5)
    made = processor(receiver, spool)
    receiver.wait_for(lambda r: r.asked == 1)
    assert not Spool(tmp_path).claim()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the test is over
        os._exit(0)
    try:
        made.shutdown()
        wait_for(lambda: Spool(tmp_path).claim())
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


# The processor with a spool.


def test_an_outage_costs_nothing_and_breaches_come_first(receiver: Receiver, tmp_path: Path) -> None:
    receiver.always = AWAY
    made = processor(receiver, Spool(tmp_path), max_spans=1000)
    for number in range(3000):  # three times what the queue holds
        put(made, f"good {number}")
        if number % 100 == 0:
            put(made, f"bad {number}", breach=True)
            wait_for(lambda: made.counts()["waiting"] < 500)
    wait_for(lambda: state(tmp_path)["good_spans"] + state(tmp_path)["breach_spans"] == 3030)
    assert_all_accounted_for(made, 3030)
    wait_for(lambda: made.counts()["spooled"] == 3030)
    receiver.always = Reply()
    receiver.wait_for(lambda r: len(r.spans()) >= 3030)
    names = receiver.names()
    assert sorted(names) == sorted(
        [f"good {number}" for number in range(3000)] + [f"bad {number}" for number in range(0, 3000, 100)]
    )
    assert all(name.startswith("bad") for name in names[:30])
    assert [name for name in names if name.startswith("good")] == [f"good {number}" for number in range(3000)]
    wait_for(lambda: made.counts()["from_spool"] == 3030)
    assert files(tmp_path) == []
    put(made, "after")
    made.shutdown()
    assert receiver.names()[-1] == "after"
    assert {k: v for k, v in state(tmp_path).items() if v and k != "bytes"} == {}


def test_breaches_come_first_however_often_they_were_tried_in_vain(receiver: Receiver, tmp_path: Path) -> None:
    """What fails again and again goes behind all else, since it may be at fault itself: not what an outage failed."""
    spool = Spool(tmp_path)
    names = [f"{kind} {number}" for kind in ("bad", "good") for number in range(4)]
    for name in names:
        spool.write(request(name), 1, breach=name.startswith("bad"))
    receiver.always = AWAY
    made = processor(receiver, Spool(tmp_path))
    receiver.wait_for(lambda r: r.asked >= 3 * STUCK_AFTER)
    receiver.always = Reply()
    receiver.wait_for(lambda r: len(r.spans()) == len(names))
    wait_for(lambda: files(tmp_path) == [])
    made.shutdown()
    assert receiver.names() == names


def test_who_may_not_deliver_from_the_spool_goes_on_without_it_after_the_outage(
    receiver: Receiver, tmp_path: Path
) -> None:
    """As all workers but one, while that one still works off the backlog."""
    other = Spool(tmp_path)
    assert other.claim()
    receiver.always = AWAY
    made = processor(receiver, Spool(tmp_path))
    put(made, "before")
    wait_for(lambda: made.counts()["spooled"] == 1)
    receiver.always = Reply()
    number = 0
    while not made.counts()["delivered"]:
        put(made, f"after {number}")
        number += 1
        time.sleep(0.02)
        assert number < 1000
    spooled = made.counts()["spooled"]
    for later in range(200):
        put(made, f"later {later}")
    assert made.force_flush()
    assert made.counts()["spooled"] == spooled
    other.release()
    receiver.wait_for(lambda r: len(r.spans()) >= 201 + number)
    made.shutdown()
    assert_all_accounted_for(made, 201 + number)


def test_without_a_spool_breaches_outlive_the_outage(receiver: Receiver) -> None:
    receiver.always = AWAY
    made = processor(receiver, None, max_spans=100)
    put(made, *(f"bad {number}" for number in range(50)), breach=True)
    put(made, *(f"good {number}" for number in range(500)))
    wait_for(lambda: receiver.asked >= 2)
    receiver.always = Reply()
    receiver.wait_for(lambda r: len(r.spans()) >= 100)
    made.shutdown()
    names = receiver.names()
    assert names[:50] == [f"bad {number}" for number in range(50)]
    assert names[50:] == [f"good {number}" for number in range(450, 500)]
    assert made.counts()["dropped"] == 450
    assert_all_accounted_for(made, 550)


def test_a_receiver_that_hangs_does_not_keep_spans_from_the_disk(receiver: Receiver, tmp_path: Path) -> None:
    """The sending thread is stuck in one export; nothing is lost all the same."""
    receiver.always = Reply(pause_s=1.5)
    made = processor(receiver, Spool(tmp_path), max_spans=200)
    for number in range(1000):
        put(made, str(number))
        if number % 50 == 0:
            wait_for(lambda: made.counts()["waiting"] <= 100)
    assert made.counts()["dropped"] == 0
    receiver.always = Reply()
    receiver.wait_for(lambda r: len(r.spans()) >= 1000)
    made.shutdown()
    assert sorted(set(receiver.names())) == sorted(map(str, range(1000)))
    assert_all_accounted_for(made, 1000)


@pytest.mark.parametrize("collector", ["down", "hangs"])
def test_at_the_end_what_is_queued_goes_to_the_spool(
    collector: str, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "FLUSH_PATIENCE_S", 0.3)
    receiver.always = AWAY if collector == "down" else Reply(pause_s=5, takes=False)
    made = processor(receiver, Spool(tmp_path))
    put(made, *map(str, range(2000)))
    put(made, "bad", breach=True)
    assert made.force_flush()
    made.shutdown()
    spooled = [name for file in files(tmp_path) for name in names_in(file.read_bytes())]
    assert sorted(spooled) == sorted([*map(str, range(2000)), "bad"])
    assert spooled[0] == "bad"
    assert made.counts()["lost"] == 0
    assert_all_accounted_for(made, 2001)


def test_a_batch_that_arrives_after_all_is_taken_out_of_the_spool(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush put it on disk while it was on its way."""
    monkeypatch.setattr(sender_module, "FLUSH_PATIENCE_S", 0.1)
    receiver.script.append(Reply(pause_s=1))
    made = processor(receiver, Spool(tmp_path))
    put(made, "slow")
    wait_for(lambda: made.counts()["in_hand"] == 1)
    assert made.force_flush()
    assert len(files(tmp_path)) == 1
    receiver.wait_for(lambda r: r.names() == ["slow"])
    wait_for(lambda: files(tmp_path) == [])
    assert {k: v for k, v in made.counts().items() if v} == {"received": 1, "delivered": 1}
    made.shutdown()
    assert receiver.names() == ["slow"]


def test_what_an_earlier_process_left_is_delivered_without_a_span_of_this_one(
    receiver: Receiver, tmp_path: Path
) -> None:
    Spool(tmp_path).write(request("left"), 1, breach=False)
    made = processor(receiver, Spool(tmp_path))
    receiver.wait_for(lambda r: r.names() == ["left"])
    wait_for(lambda: made.counts()["from_spool"] == 1)
    made.shutdown()
    assert files(tmp_path) == []


def test_what_is_refused_out_of_the_spool_is_counted_for_good(receiver: Receiver, tmp_path: Path) -> None:
    for name in ("bad", "half", "fine"):
        Spool(tmp_path).write(request(name, name), 2, breach=False)
    receiver.script.append(Reply(code=StatusCode.INVALID_ARGUMENT, takes=False))
    receiver.script.append(Reply(body=partial_success(1, "no")))
    made = processor(receiver, Spool(tmp_path))
    receiver.wait_for(lambda r: "fine" in r.names())
    wait_for(lambda: files(tmp_path) == [])
    made.shutdown()
    counts = made.counts()
    assert (counts["from_spool"], counts["refused_from_spool"]) == (3, 3)
    assert state(tmp_path)["refused"] == 3


def test_a_damaged_file_does_not_hold_up_the_others(receiver: Receiver, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    damaged = spool.write(request("damaged"), 1, breach=True)
    spool.write(request("fine"), 1, breach=False)
    assert damaged is not None
    damaged.write_bytes(b"\x0a")
    made = processor(receiver, spool)
    receiver.wait_for(lambda r: r.names() == ["fine"])
    made.shutdown()
    assert state(tmp_path)["damaged"] == 1


def _full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_once_and_memory_takes_over(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sender_module, "_SPOOL_AGAIN_AFTER_S", 0.05)
    receiver.always = AWAY
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "_write", _full)
        made = processor(receiver, Spool(tmp_path), max_spans=100)
        put(made, *(f"bad {number}" for number in range(50)), breach=True)
        put(made, *(f"good {number}" for number in range(500)))
        wait_for(lambda: receiver.asked >= 3)
        assert made.counts()["spooled"] == 0
        assert made.counts()["dropped"] == 450
        assert_all_accounted_for(made, 550)
    assert not [file for file in tmp_path.iterdir() if file.name.endswith((".otlp", ".tmp"))]
    wait_for(lambda: made.counts()["spooled"] == 100)  # there is room again
    receiver.always = Reply()
    receiver.wait_for(lambda r: len(r.spans()) >= 100)
    made.shutdown()
    assert capfd.readouterr().err.count("No space left on device") == 1


@pytest.mark.parametrize("wrong", ["a file", "below a file"])
def test_a_folder_that_cannot_be_is_said_once_and_harms_nothing(
    wrong: str, receiver: Receiver, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path / "file" if wrong == "a file" else tmp_path / "file" / "below"
    receiver.always = AWAY
    made = processor(receiver, Spool(folder))
    put(made, *map(str, range(10)))
    wait_for(lambda: receiver.asked >= 3)
    receiver.always = Reply()
    receiver.wait_for(lambda r: len(r.spans()) >= 10)
    made.shutdown()
    assert sorted(receiver.names()) == sorted(map(str, range(10)))
    said = capfd.readouterr().err
    assert said.count("cannot be used") == 1
    assert f"STAGETRACE_SPOOL={folder}" in said
    assert "fault of stagetrace" not in said


# What hangs.


@pytest.mark.parametrize("part", ["write", "read", "names", "claim"])
def test_a_disk_that_hangs_holds_up_neither_the_service_nor_its_end(
    part: str, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`put` goes on and keeps its bounds, and the end comes though the disk still hangs."""
    free = threading.Event()

    def hangs(*_: Any, **__: Any) -> Any:
        free.wait(60)
        raise OSError(errno.EIO, "at last")

    if part != "write":
        Spool(tmp_path).write(request("left"), 1, breach=False)
    else:
        receiver.always = AWAY
    made = processor(receiver, Spool(tmp_path), max_spans=100)
    monkeypatch.setattr(Spool, part, hangs)
    for number in range(50_000):
        put(made, str(number))
        assert len(made._waiting._incoming) < 20_000  # as many as come in a few switches between threads
    ended = threading.Thread(target=made.shutdown, daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive()
    free.set()
    assert_all_accounted_for(made, 50_000)


# Several processes.

WRITER = """
import sys, time
from pathlib import Path
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from stagetrace.otlp.encoder import resource_spans
from stagetrace.otlp import build
made = build.otlp_processor(OTLPSpanExporter, "there")
sys.path.insert(0, sys.argv[2])
from otlp.test_spool import span_named
resource = Resource({})
for number in range(1000):
    made.put(resource, None, span_named(f"{sys.argv[1]}.{number}"), 1, breach=number % 50 == 0)
    time.sleep(0.0005)
assert made.force_flush()
print("flushed", flush=True)
time.sleep(600)
"""


def test_workers_share_a_folder_are_killed_and_nothing_is_lost(receiver: Receiver, tmp_path: Path) -> None:
    receiver.always = AWAY
    env = {
        **os.environ,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "STAGETRACE_SPOOL": str(tmp_path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc,
    }
    tests = str(Path(__file__).parents[1])
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, tests], env=env, stdout=subprocess.PIPE)
        for name in ("one", "two")
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"flushed\n"
    for worker in workers:
        worker.kill()
        worker.wait()
        worker.stdout.close()  # type: ignore[union-attr]
    receiver.always = Reply()
    made = processor(receiver, Spool(tmp_path))
    expected = [f"{name}.{number}" for name in ("one", "two") for number in range(1000)]
    receiver.wait_for(lambda r: len(r.spans()) >= len(expected))
    made.shutdown()
    names = receiver.names()
    assert sorted(names) == sorted(expected)
    breaches = {name for name in expected if int(name.partition(".")[2]) % 50 == 0}
    assert set(names[: len(breaches)]) == breaches
