"""The spool's folder: files that are the requests, bounded, across processes, whatever else is in it or is damaged."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from backend.processes import Lines, started
from otlp.receiver import Receiver, Reply
from otlp.sending import files, names_in, processor, request, wait_for
from stagetrace.otlp.export.spool import Spool, state

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick")


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


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("years of work")
    spool = Spool(tmp_path / "spool")
    spool.folder.mkdir()
    for name in (".counts.lock", ".delivery.lock", ".counts.json.tmp"):
        (spool.folder / name).symlink_to(victim)
    for act in (spool.claim, lambda: spool.count(refused=1)):
        with pytest.raises(PermissionError, match="is a link"):
            act()
    (spool.folder / ".counts.lock").unlink()
    spool.count(refused=1)
    assert state(spool.folder)["refused"] == 1
    assert victim.read_text() == "years of work"


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
from stagetrace.otlp.export.spool import Spool
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
from stagetrace.otlp.export.spool import Spool
print(Spool(Path(sys.argv[1])).claim(), flush=True)
time.sleep(600)
"""
    spool = Spool(tmp_path)
    with started([sys.executable, "-c", code, str(tmp_path)]) as process:
        assert Lines(process.stdout).next() == "True"
        assert not spool.claim()
    assert process.returncode == -signal.SIGKILL
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
