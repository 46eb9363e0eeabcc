"""Code that runs in the middle of a native function and takes away the objects that the function works with.

`test_reentrancy.py` runs each function here in a process of its own: an error of this kind ends the process.
"""

from __future__ import annotations

import gc
import itertools
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from native import loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCENARIOS: dict[str, Callable[[], None]] = {}


def scenario(function: Callable[[], None]) -> Callable[[], None]:
    """Add a function to those that the tests run."""
    SCENARIOS[function.__name__] = function
    return function


def raised(function: Callable[..., Any], *arguments: Any) -> str:
    """Return which exception a call raises."""
    try:
        return f"returned {function(*arguments)!r}"
    except BaseException as error:  # noqa: BLE001 -- compared with what a coroutine raises
        return f"{type(error).__name__}: {error}"


def fresh(text: str) -> str:
    """Return a string that nobody else has a reference to."""
    return "".join([*text])


# --- record.c and stage.c


@scenario
def collected_while_stages_are_freed() -> None:
    """A finaliser of an attribute runs the garbage collector, which then looks at what is being freed."""
    from stagetrace.request.request import Request

    class Value:
        def __del__(self) -> None:
            gc.collect()

    gc.freeze()  # what was imported would be looked at 760 times
    for is_closed in (True, False) * 20:
        record = Request(start=1)
        for at in range(10, 200, 10):
            record.enter("inference", {"value": Value()}, at=at)
            record.leave("inference", at=at + 2)
        stages = record.close(1, 1_000) if is_closed else record.so_far()
        record.abandon()
        del record, stages


@scenario
def attributes_replaced_by_the_clock() -> None:
    """A record's clock gives a mark other attributes, and the record another clock."""
    from stagetrace.request.marks import Mark
    from stagetrace.request.request import Request

    class Attributes(dict[str, int]):
        """Freed at once, where a dict is kept for the next one."""

    class Clock:
        def __call__(self) -> int:
            record.clock = Clock()
            mark.attributes = None
            return 10**18

    record, mark = Request(Clock(), start=1), Mark("mark", Attributes(rows=3))
    record.begin_mark(mark)
    assert [one.attributes for one in record.so_far()] == [{}, {"rows": 3}]


@scenario
def stage_initialized_again() -> None:
    """A garbage collection in the middle of `stage.__enter__` gives the stage another name."""
    from stagetrace.request.current import current
    from stagetrace.request.request import Request
    from stagetrace.request.stage import stage

    times = itertools.count(1)
    record = Request(lambda: next(times), start=1)
    record.bound = True
    current.set(record)
    count = [0]

    def name() -> str:
        count[0] += 1
        return fresh(f"stage {count[0]}")

    for attributes in ({}, {"rows": 3}):
        block: Any = stage(name(), **attributes)
        enter = block.__enter__

        def again(block: Any = block, given: Any = attributes) -> None:
            block.__init__(name(), **given)

        for point in range(20):
            with collecting(point, again):
                enter()
    opened = [one.stage for one in record.so_far()[1:]]
    assert next(times) == 41  # each has looked at the clock
    assert opened
    assert all(one.startswith("stage ") for one in opened)


@contextmanager
def collecting(point: int, then: Callable[[], Any]) -> Iterator[None]:
    """Let the garbage collector call `then` at about the `point`th object that is made in the block."""

    def collected(phase: str, _info: Any) -> None:
        if phase == "start":
            gc.callbacks.clear()
            then()

    gc.freeze()  # what there is by now makes no collection slow
    gc.collect()  # also empties the lists of tuples and dicts for use again, which are no new objects
    gc.callbacks.append(collected)
    gc.set_threshold(gc.get_count()[0] + point + 1)
    try:
        yield
    finally:
        gc.set_threshold(700)
        gc.callbacks.clear()


# --- what overflows or is cut off


@scenario
def descriptors_beyond_an_int() -> None:
    """A file descriptor of more than 32 bits is not cut down to that of another file."""
    from stagetrace.sources.socket_wait import tcp_info

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:

        class Beyond:
            def fileno(self) -> int:
                return client.fileno() + (1 << 32)

        assert tcp_info(client, 8)
        assert raised(tcp_info, Beyond(), 8) == "OSError: [Errno 9] Bad file descriptor"


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
    loaded.check()
