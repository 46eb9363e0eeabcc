"""The frames of a stack are made without a collection of garbage, in which CPython 3.11 hangs or crashes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from missing import unused
from services import clean_environment, run_python
from stagetrace.sources import stacks
from stagetrace.sources.stacks import frame_of, frames_from, of_threads, place_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import CodeType, FrameType

pytestmark = pytest.mark.native
WITHIN_S = 30
AFFECTED = sys.version_info[:2] == (3, 11)


def deep(steps: int, at_the_end: threading.Barrier) -> None:
    if steps:
        deep(steps - 1, at_the_end)
    else:
        at_the_end.wait(WITHIN_S)
        at_the_end.wait(WITHIN_S)


@contextmanager
def collections() -> Iterator[list[str]]:
    """Collect at each object that the collector knows, while the block runs; yield what it began."""
    began: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        began.append(phase)

    thresholds = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        yield began
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(note)


@pytest.mark.parametrize("is_on", [True, False])
def test_frames_are_made_without_a_collection(is_on: bool) -> None:
    """Afterwards the collector is as it was before."""
    if stacks._in_c is None:
        unused()
    made: Any = iterator()
    before = gc.isenabled()
    barrier = threading.Barrier(2)
    thread = threading.Thread(target=deep, args=(50, barrier), daemon=True)
    thread.start()
    barrier.wait(WITHIN_S)
    (gc.enable if is_on else gc.disable)()
    try:
        with collections() as began:
            frame = stacks._in_c.uncollected(sys._current_frames)[thread.ident]
            walked = stacks._in_c.walk(frame, 1_000)
            of_generator = stacks._in_c.uncollected(getattr, made, "gi_frame")
            during = began.copy()
            known = [iterator() for _ in range(10)]  # objects that the collector knows
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if before else gc.disable)()
        barrier.wait(WITHIN_S)
        thread.join()
    assert (during, bool(began)) == ([], is_on), known
    assert [code.co_name for code, _ in walked[1]].count("deep") == 51
    assert of_generator is made.gi_frame


def iterator() -> Generator[int]:
    yield 1


def places(frame: FrameType | None) -> list[tuple[CodeType, int]]:
    found = []
    while frame is not None:
        found.append(place_of(frame))
        frame = frame.f_back
    return found


@pytest.mark.parametrize("most", [1_000, 30])
def test_a_walk_is_that_of_the_interpreter(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "MAX_WALKED", most)
    barrier = threading.Barrier(2)
    thread = threading.Thread(target=deep, args=(50, barrier), daemon=True)
    thread.start()
    barrier.wait(WITHIN_S)
    assert thread.ident is not None
    frame = of_threads()[thread.ident]
    expected = places(frame)
    frames, found = frames_from(frame)
    barrier.wait(WITHIN_S)
    thread.join()
    assert len(expected) > 50
    assert found == expected[:most]
    assert frames[0] is frame
    assert frames[1] is frame.f_back
    assert frames_from(None) == ([], [])


def test_a_walk_of_no_frame_and_a_call_of_nothing_fail() -> None:
    if stacks._in_c is None:
        unused()
    wrong: Any
    for wrong in ((1, 5), (sys._getframe(), "5"), (sys._getframe(),), (object, 3)):
        with pytest.raises(TypeError):
            stacks._in_c.walk(*wrong)
    for wrong in ((), (5,), (len,)):
        with pytest.raises(TypeError):
            stacks._in_c.uncollected(*wrong)
    with pytest.raises(AttributeError):
        frame_of(object(), "cr_frame")
    assert gc.isenabled()


# Threads begin, end, call and return as fast as they can, while each collection lets them: as a callback or a finalizer
# in Python may.
BUSY = """
import gc, sys, threading, time
from stagetrace.sources import stacks

def let_others_run(phase, _):
    if phase == "stop" and threading.current_thread() is threading.main_thread():
        time.sleep(0.001)

def deep(steps, *_):
    if steps:
        deep(steps - 1, *range(steps % 7))

def call():
    while True:
        for steps in range(5, 60):
            deep(steps)

def begin():
    while True:
        threads = [threading.Thread(target=deep, args=(steps * 10,), daemon=True) for steps in range(10)]
        [one.start() for one in threads], [one.join() for one in threads]

for work in (call, begin):
    threading.Thread(target=work, daemon=True).start()
gc.callbacks.append(let_others_run)
gc.set_threshold(2)
sys.setswitchinterval(1e-5)
began = time.monotonic()
while time.monotonic() - began < 4:
    for frame in stacks.of_threads().values():
        stacks.frames_from(frame)
print("goes on", flush=True)
"""


@pytest.mark.thorough
def test_a_process_in_which_threads_begin_and_end_goes_on() -> None:
    if AFFECTED and stacks._in_c is None:
        unused()
    done = subprocess.run(
        [sys.executable, "-c", BUSY], env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr


def test_without_c_311_reads_no_stack() -> None:
    code = "from stagetrace.sources.stacks import SOURCE; print(SOURCE.lacks)"
    lacks = run_python("-c", code, STAGETRACE_NATIVE="0").stdout
    assert ("may hang or crash" in lacks) == AFFECTED
    assert run_python("-c", code).stdout == "None\n" or stacks._in_c is None
