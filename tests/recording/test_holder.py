"""Where the thread stands that has the GIL, as seen by one that waits for it."""

from __future__ import annotations

import re
import sys
import threading
import time
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace.request import in_flight
from stagetrace.request.in_flight import Holder, KernelTimer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11) or not in_flight.HAS_KERNEL_TIMERS, reason="of CPython 3.11, with the part in C"
    ),
]
TRIES = 50
# Held in C for some hundredths of a second, or more.
BACKTRACKS = "a" * 21 + "b"


@pytest.fixture
def waits() -> Iterator[Callable[[Callable[[], object]], in_flight.Late]]:
    """Return what a timer's thread sees that ends while a function runs."""
    made = KernelTimer()

    def run(function: Callable[[], object]) -> in_flight.Late:
        found: list[in_flight.Late] = []
        made.set(3_000_000)
        thread = threading.Thread(target=lambda: found.append(made.wait()))
        thread.start()
        function()
        thread.join()
        return found[0]

    yield run
    made.close()


def seen_of(run: Callable[[Callable[[], object]], in_flight.Late], function: Callable[[], object]) -> Holder:
    for _ in range(TRIES):
        holder = run(function).holder
        if holder is not None and holder.thread == threading.get_ident() and holder.raw:
            return holder
    raise AssertionError("the holder was never seen")


re.compile(r"(a+)+$")  # once: a thread that loses its CPU in that would be seen there


def backtrack() -> None:
    re.match(r"(a+)+$", BACKTRACKS)


def test_the_places_are_those_of_the_call_that_holds_the_gil(
    waits: Callable[[Callable[[], object]], in_flight.Late],
) -> None:
    holder = seen_of(waits, backtrack)
    places = [(code.co_filename, code.co_name, line) for code, line in holder.places()]
    line = backtrack.__code__.co_firstlineno + 1
    assert (__file__, "backtrack", line) in places
    at = places.index((__file__, "backtrack", line))
    assert [name for _, name, _ in places[:at]] in ([], ["match"])
    assert "run" in [name for _, name, _ in places[at:]]


def of_several_lines() -> None:
    found = (
        len(BACKTRACKS),
        re.match(
            r"(a+)+$",
            BACKTRACKS,
        ),
    )
    del found


def test_names_of_all_scripts_and_calls_of_several_lines(
    waits: Callable[[Callable[[], object]], in_flight.Late],
) -> None:
    code = of_several_lines.__code__
    for name in ("na\u00efve", "\u540d\u524d", "\U0001d4db"):
        names: Any = {"co_name": name, "co_filename": f"/{name}.py"}
        holder = seen_of(waits, FunctionType(code.replace(**names), globals()))
        (place,) = [(code.co_filename, line) for code, line in holder.places() if code.co_name == name]
        assert place == (f"/{name}.py", code.co_firstlineno + 3)


def test_a_coroutine_is_known_by_its_frame(waits: Callable[[Callable[[], object]], in_flight.Late]) -> None:
    async def work() -> None:
        backtrack()

    made: list[object] = []

    def step() -> None:
        one = work()
        made.append(one)
        with pytest.raises(StopIteration):
            one.send(None)

    holder = seen_of(waits, step)
    at = holder.index_of(made[-1])
    assert at is not None
    assert holder.raw[at][1] == "work"
    other = work()
    assert holder.index_of(other) is None
    other.close()


def test_threads_that_come_and_go_and_change_their_stacks_are_looked_at_safely(
    waits: Callable[[Callable[[], object]], in_flight.Late],
) -> None:
    """What is seen is code that there is."""
    until = time.monotonic() + 1.0
    ends = threading.Event()

    def recurse(depth: int) -> int:
        return depth if depth == 0 else recurse(depth - 1) + len(str(depth))

    def work() -> None:
        while not ends.is_set():
            namespace: dict[str, Callable[[], int]] = {}
            exec(  # noqa: S102 -- code that is gone at once
                "def made(): return sum(x for x in range(50))", namespace
            )
            namespace["made"]()
            recurse(40)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for one in threads:
        one.start()
    names: set[str] = set()
    try:
        while time.monotonic() < until:
            late = waits(lambda: recurse(30))
            if late.holder is not None:
                names.update(code.co_name for code, _ in late.holder.places())
            for one in [threading.Thread(target=recurse, args=(5,)) for _ in range(3)]:
                one.start()
                one.join()
    finally:
        ends.set()
        for one in threads:
            one.join()
    assert all(name.isprintable() and len(name) < 64 for name in names)


def test_a_thread_that_runs_python_is_known_though_not_where_it_stands(
    waits: Callable[[Callable[[], object]], in_flight.Late],
) -> None:
    def run() -> None:
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass

    assert in_flight.SEES_HOLDER
    assert any(
        late.holder is not None and late.holder.thread == threading.get_ident()
        for late in (waits(run) for _ in range(TRIES))
    )


def test_nothing_is_seen_meanwhile_where_no_timer_waits() -> None:
    assert in_flight.holder_meanwhile() is None


def test_the_state_of_a_thread_is_the_kernels() -> None:
    go, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait(60)
    assert thread.native_id is not None
    deadline = time.monotonic() + 60
    while in_flight.thread_state(thread.native_id) != "S" and time.monotonic() < deadline:
        time.sleep(0.001)
    assert in_flight.thread_state(thread.native_id) == "S"
    assert in_flight.thread_state(threading.get_native_id()) == "R"
    go.set()
    thread.join()
    assert in_flight.thread_state(2**31 - 1) == ""
