"""The processor with a spool: nothing lost while the Collector is away, and never a harm to the service."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from backend.processes import Lines, started
from otlp.receiver import Receiver, Reply, partial_success
from otlp.sending import AWAY, assert_all_accounted_for, files, names_in, processor, put, request, wait_for
from stagetrace.otlp.export import sender as sender_module
from stagetrace.otlp.export import spool as spool_module
from stagetrace.otlp.export.response import STUCK_AFTER
from stagetrace.otlp.export.spool import Spool, state

pytestmark = pytest.mark.usefixtures("quick")


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
    kinds = [(kind, len(list(some))) for kind, some in groupby(name.split()[0] for name in names)]
    assert kinds == [("bad", 30), ("good", 3000)]


@pytest.mark.thorough
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
    wait_for(lambda: made.counts()["in_hand"] == 0)
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
    made = processor(receiver, Spool(tmp_path), timeout_s=2)
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


def test_a_full_disk_is_logged_once_and_memory_takes_over(
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
def test_a_folder_that_cannot_be_is_logged_once_and_harms_nothing(
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
    logged = capfd.readouterr().err
    assert logged.count("cannot be used") == 1
    assert f"STAGETRACE_SPOOL={folder}" in logged
    assert "fault of stagetrace" not in logged


# What hangs.


@pytest.mark.thorough
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
        assert len(made._queue._incoming) < 20_000  # as many as come in a few switches between threads
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
from opentelemetry.sdk.resources import Resource
from stagetrace.otlp.encode import resource_spans
from stagetrace.otlp.export import batch_processor
made = batch_processor.otlp_processor("otlp_proto_grpc", "there")
sys.path.insert(0, sys.argv[2])
from otlp.sending import span_named
resource = Resource({})
for number in range(1000):
    made.put(resource, None, span_named(f"{sys.argv[1]}.{number}"), 1, breach=number % 50 == 0)
    time.sleep(0.0005)
assert made.force_flush()
print("flushed", flush=True)
time.sleep(600)
"""


@pytest.mark.thorough
def test_workers_share_a_folder_are_killed_and_nothing_is_lost(receiver: Receiver, tmp_path: Path) -> None:
    receiver.always = AWAY
    env = {
        **os.environ,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "STAGETRACE_SPOOL": str(tmp_path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc,
    }
    tests = str(Path(__file__).parents[1])
    with ExitStack() as workers:  # which kills them
        running = [
            workers.enter_context(started([sys.executable, "-c", WRITER, name, tests], env=env, stderr=None))
            for name in ("one", "two")
        ]
        assert [Lines(worker.stdout).next() for worker in running] == ["flushed", "flushed"]
    receiver.always = Reply()
    made = processor(receiver, Spool(tmp_path))
    expected = [f"{name}.{number}" for name in ("one", "two") for number in range(1000)]
    receiver.wait_for(lambda r: len(r.spans()) >= len(expected))
    made.shutdown()
    names = receiver.names()
    assert sorted(names) == sorted(expected)
    breaches = {name for name in expected if int(name.partition(".")[2]) % 50 == 0}
    assert set(names[: len(breaches)]) == breaches
