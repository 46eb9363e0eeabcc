"""Code that runs in the middle of a native function and takes away the objects that the function works with.

`test_reentrancy.py` runs each function here in a process of its own: an error of this kind ends the process.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
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


PART = {"type": "http.response.body", "body": b"x", "more_body": True}


def raised(function: Callable[..., Any], *arguments: Any) -> str:
    """Return which exception a call raises."""
    try:
        return f"returned {function(*arguments)!r}"
    except BaseException as error:  # noqa: BLE001 -- compared with what a coroutine raises
        return f"{type(error).__name__}: {error}"


class Reentrant:
    """Calls `send`, `throw` and `close` of an awaitable from within the work that the awaitable does."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.own: Any = None
        self.outcomes: list[str] = []

    def enter_again(self) -> None:
        calls = (self.own.send, None), (self.own.throw, KeyError("again")), (self.own.close,)
        self.outcomes += [raised(*call) for call in calls]

    async def work(self, *_: Any) -> Any:
        self.enter_again()
        try:
            await asyncio.sleep(0)
        finally:
            self.enter_again()
        return self.result

    def drive(self, how: str) -> list[str]:
        """Begin the awaitable, go on with it as `how` says, and use it once more; return all outcomes."""
        self.outcomes.append(raised(self.own.send, None))
        going_on: dict[str, tuple[Any, ...]] = {
            "send": (self.own.send, None),
            "throw": (self.own.throw, ValueError("thrown")),
            "close": (self.own.close,),
        }
        self.outcomes += [raised(*going_on[how]), raised(self.own.send, None), raised(self.own.close)]
        return self.outcomes


@scenario
def like_a_coroutine() -> None:
    """An awaitable that is used while it runs raises what a coroutine raises, and goes on."""
    from stagetrace.instrumentation.asgi.channels import Receive, Send, stepped
    from stagetrace.recording.timeline import Timeline

    async def as_send(work: Any) -> Any:
        return await work()

    makers: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "stepped": ("done", lambda work: stepped(work(), Timeline())),
        "receive": ({"type": "http.request"}, lambda work: Receive(Timeline(), work)()),
        "send": (None, lambda work: Send(Timeline(), work)(PART)),
    }
    for how in ("send", "throw", "close"):
        for name, (result, make) in makers.items():
            plain, ours = Reentrant(result), Reentrant(result)
            plain.own = as_send(plain.work)
            ours.own = make(ours.work)
            assert ours.drive(how) == plain.drive(how), (name, how, ours.outcomes)


@scenario
def while_it_begins() -> None:
    """A timeline, and the application's `send`, use the awaitable before there is a coroutine in it."""
    from stagetrace.instrumentation.asgi.channels import Send, _Send
    from stagetrace.recording.timeline import Timeline

    def outcomes(kind: Any) -> list[str]:
        again = Reentrant()

        class Entered(Timeline):
            def enter(self, *_: Any) -> None:
                again.enter_again()

            def leave(self, *_: Any) -> None:
                again.enter_again()

        def send(_message: Any) -> Any:
            again.enter_again()
            return again.work()

        again.own = kind(Entered(), send)(PART)
        return again.drive("send")

    assert outcomes(Send) == outcomes(_Send)
    assert "ValueError: coroutine already executing" in outcomes(Send)


@scenario
def from_another_thread() -> None:
    """A thread that sends into an awaitable, which another thread runs, raises."""
    from stagetrace.instrumentation.asgi.channels import stepped
    from stagetrace.recording.timeline import Timeline

    entered, leave = threading.Event(), threading.Event()

    async def work() -> str:
        entered.set()
        leave.wait(10)
        return "done"

    own = stepped(work(), Timeline())
    first: list[str] = []
    thread = threading.Thread(target=lambda: first.append(raised(own.send, None)))
    thread.start()
    entered.wait(10)
    outcomes = [raised(own.send, None), raised(own.throw, KeyError()), raised(own.close)]
    leave.set()
    thread.join()
    assert outcomes == ["ValueError: coroutine already executing"] * 3
    assert first == ["StopIteration: done"]


@scenario
def initialized_again() -> None:
    """A Send gets another timeline and another `send` while it uses those that it has."""
    from stagetrace.instrumentation.asgi.channels import Send
    from stagetrace.recording.timeline import Timeline

    class Answered(Timeline):
        def begin_answer(self, _message: Any) -> None:
            replace()

        def add_piece(self, _now: int, _message: Any) -> None:
            replace()

    class Sends:
        def __call__(self, _message: Any) -> Any:
            replace()
            return asyncio.sleep(0)

    def replace() -> int:
        passed.__init__(Answered(replace, start=1), Sends(), Answered(start=1))  # which alone refers to all three
        return 10**18

    kind: Any = Send
    for message in ({"type": "http.response.start"}, PART):
        passed = kind(Answered(replace, start=1), Sends(), Answered(start=1))
        asyncio.run(passed_on(passed, message))


async def passed_on(passed: Any, message: Any) -> None:
    await passed(message)


# --- _asgi


def asgi_recorder() -> Any:
    """Return a recorder as a service has it."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    from stagetrace import KeepBreaches, SLASpanProcessor
    from stagetrace.sla.entry_recorder import EntryRecorder

    provider = TracerProvider(KeepBreaches(ALWAYS_ON), Resource.get_empty(), shutdown_on_exit=False)
    processor = SLASpanProcessor(None, provider._active_span_processor)
    processor.has_others = False
    return EntryRecorder(provider, processor, [])


def fresh(text: str) -> str:
    """Return a string that nobody else has a reference to."""
    return "".join([*text])


def fresh_scope() -> dict[str, Any]:
    headers = [(bytes([*b"x-request-start"]), bytes(8)), (b"user-agent", bytes([*b"agent/1"])), (b"host", b"here")]
    return {
        "type": "http",
        "method": fresh("GET"),
        "path": fresh("/predict"),
        "scheme": "http",
        "headers": headers[1:],
        "server": ("127.0.0.1", 80),
        "client": ("10.0.0.1", 5),
    }


@scenario
def cache_cleared_by_setattr() -> None:
    """The request's own `__setattr__` clears the cache whose members the native function sets."""
    from stagetrace.instrumentation.asgi import request as asgi
    from stagetrace.instrumentation.http import attributes as http

    recorder, send = asgi_recorder(), asyncio.sleep

    class Clearing(asgi.OwnRequest):
        def __setattr__(self, name: str, value: Any) -> None:
            http._known.clear()
            http._requests.clear()
            http._clients.clear()
            http._names.clear()
            scope.clear()
            super().__setattr__(name, value)

    scope = fresh_scope()
    asgi.OwnRequest.__new__(asgi.OwnRequest)._begin_in_python(scope, send, 10**18, recorder)
    scope = fresh_scope()
    request: Any = Clearing.__new__(Clearing)
    assert asgi._twin.begin(request, scope, send, 10**18, recorder)
    assert (request._method, request._path, request._span_name) == ("GET", "/predict", "GET")
    assert request._block.encoded
    assert request._client.encoded


@scenario
def scope_changed_by_a_key() -> None:
    """A key of the scope that is compared with another one takes the values out."""
    from stagetrace.instrumentation.asgi import request as asgi

    recorder, send = asgi_recorder(), asyncio.sleep
    asgi.OwnRequest.__new__(asgi.OwnRequest)._begin_in_python(fresh_scope(), send, 10**18, recorder)

    class Key:
        armed = False

        def __hash__(self) -> int:
            return hash("path")

        def __eq__(self, other: object) -> bool:
            if Key.armed and other == "path":
                scope.pop("method", None)
            return False

    plain = fresh_scope()
    scope: dict[Any, Any] = {Key(): 1, **plain}
    plain.clear()
    Key.armed = True
    request: Any = asgi.OwnRequest.__new__(asgi.OwnRequest)
    assert asgi._twin.begin(request, scope, send, 10**18, recorder)
    assert (request._method, request._path) == ("GET", "/predict")


@scenario
def headers_changed_by_a_field() -> None:
    """A field of a propagator, when compared with a header's name, empties the headers and sets another propagator."""
    from opentelemetry import propagate
    from opentelemetry.propagators.composite import CompositePropagator

    from stagetrace.instrumentation.http import attributes as http

    class Field(bytes):
        """A name that is like each name of its hash, until it is asked."""

        __slots__ = ()

        def __hash__(self) -> int:
            return hash(b"x-own-field")

        def __eq__(self, _other: object) -> bool:
            headers.clear()
            propagate.set_global_textmap(CompositePropagator([]))
            asgi._twin.begin(asgi.OwnRequest.__new__(asgi.OwnRequest), {**scope, "headers": []}, send, 10**18, recorder)
            return False

    http._fields = lambda _propagator: {Field(b"x-own-field")}  # type: ignore[assignment]
    from stagetrace.instrumentation.asgi import request as asgi

    recorder, send = asgi_recorder(), asyncio.sleep
    for _ in range(3):
        headers = [(bytes([*b"x-own-field"]), bytes(9)) for _ in range(9)]
        scope = {**fresh_scope(), "headers": headers}
        asgi._twin.begin(asgi.OwnRequest.__new__(asgi.OwnRequest), scope, send, 10**18, recorder)


# --- _marks


@scenario
def attributes_replaced_by_the_clock() -> None:
    """A timeline's clock gives a mark other attributes, and the timeline another clock."""
    from stagetrace.recording.marks import Mark
    from stagetrace.recording.timeline import Timeline

    class Attributes(dict[str, int]):
        """Freed at once, where a dict is kept for the next one."""

    class Clock:
        def __call__(self) -> int:
            timeline.clock = Clock()
            mark.attributes = None
            return 10**18

    timeline, mark = Timeline(Clock(), start=1), Mark("mark", Attributes(rows=3))
    timeline.begin_mark(mark)
    assert [event[3] for event in timeline._log] == [{"rows": 3}]


@scenario
def stage_initialized_again() -> None:
    """A garbage collection in the middle of `stage.__enter__` gives the stage another name."""
    from stagetrace.recording.current_timeline import current
    from stagetrace.recording.marks import stage
    from stagetrace.recording.timeline import Timeline

    timeline = Timeline()
    timeline.bound = True
    current.set(timeline)
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
    marks = [event[2].stage for event in timeline._log]
    assert len(marks) == 40
    assert all(one.startswith("stage ") for one in marks)


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


# --- _ending


@scenario
def ended_while_collecting() -> None:
    """A garbage collection at any point of a request's end takes away what the recorder and the request keep."""
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_ON, ParentBased, TraceIdRatioBased
    from opentelemetry.trace import TraceFlags

    import sla.test_ending as ending
    from stagetrace.sla import entry_recorder as recorder

    for sampler in (DEFAULT_ON, ALWAYS_ON, ParentBased(TraceIdRatioBased(1.0))):
        setting = ending.Setting(sampler, "GET /a within 1ms")
        for _ in range(2):
            setting.end(ending.PLAIN, in_c=False)
        setting.recorder._may_end_in_c = True
        lists: list[list[Any]] = []
        describe = ending.Entry.describe

        def kept(self: Any, describe: Any = describe, lists: Any = lists) -> Any:
            blocks, client, told = describe(self)
            lists.append(blocks)
            return blocks, client, told

        def take_away(lists: Any = lists, setting: Any = setting) -> None:
            recorder._FLAGS[3] = TraceFlags(3)
            for blocks in lists:
                blocks.clear()
            setting.processor.counter._counts = {}
            setting.processor.learned._seen = {("GET", "/a"): 10**6 + 1}
            setting.recorder._unbroken = {}
            setting.recorder._rests = {}

        ending.Entry.describe = kept  # type: ignore[method-assign]
        try:
            for point in range(200):
                lists.clear()
                with collecting(point, take_away):
                    setting.end(ending.PLAIN, in_c=True)
        finally:
            ending.Entry.describe = describe  # type: ignore[method-assign]


@scenario
def counts_replaced_by_an_addition() -> None:
    """A number among the counts of verdicts takes itself out while 1 is added to it."""
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON

    import sla.test_ending as ending

    setting = ending.Setting(DEFAULT_ON, "GET /a within 1ms")

    class Count:
        def __add__(self, _other: object) -> Any:
            setting.processor.counter._counts.clear()
            return NotImplemented

    class Seen:
        def __index__(self) -> int:
            setting.processor.learned._seen.clear()
            return ending.SETTLED

    for _ in range(2):
        setting.end(ending.PLAIN, in_c=False)
    setting.recorder._may_end_in_c = True
    counts: Any = setting.processor.counter._counts
    counts["GET /a within 1ms", "good"] = Count()
    setting.end({**ending.PLAIN, "seen": Seen()}, in_c=True)
    setting.end({**ending.PLAIN, "seen": (1 << 63) - 1}, in_c=True)


@scenario
def too_many_ids() -> None:
    from stagetrace.sla import entry_recorder as recorder

    assert raised(recorder._twin.ids, 1 << 61).startswith("MemoryError")
    assert recorder._twin.ids(-1) == b""


# --- what overflows or is cut off


@scenario
def accounts_before_1970() -> None:
    """A reading of a thread's time that no clock gives does not overflow."""
    from stagetrace.sources import thread_cpu as threads

    threads.account = lambda _now=None: (-(1 << 63),) * 9  # type: ignore[assignment,return-value]
    from stagetrace.recording.pool_task import Turn
    from stagetrace.recording.timeline import Timeline

    class Divided(Timeline):
        def divide(self, first: Any) -> None:
            divided.append(first)

    divided: list[Any] = []
    Turn(Divided(), print, {}, None)()
    assert len(divided) == 1


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
