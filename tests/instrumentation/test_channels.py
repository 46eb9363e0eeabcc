"""Body and response pass as the server's own `receive` and `send` would let them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from services import run_python
from stagetrace import guard
from stagetrace.protocols.asgi_request import AsgiRequest
from stagetrace.request import loop_blockers
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.sources import thread_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD = {"type": "http.response.start", "status": 200}
BODY = {"type": "http.response.body", "body": b"x"}
PART = {**BODY, "more_body": True}
WITH_TRAILERS = {**HEAD, "trailers": True}
TRAILERS = {"type": "http.response.trailers"}


@pytest.fixture(autouse=True)
def _nothing_fails() -> Iterator[None]:
    """Fail a test in which something of ours was reported."""
    guard.failures.clear()
    yield
    assert not guard.failures


def scope() -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}


class Passed(AsgiRequest):
    """A request that notes what is reported of the response."""

    def __init__(self) -> None:
        super().__init__(scope(), None, time.time_ns(), None)
        self.heads: list[Any] = []
        self.ends: list[int] = []
        self.pieces: list[Any] = []
        self.taken_in: list[Any] = []
        self.gone = 0
        self.noted: list[tuple[int, int, str]] = []  # when, begin (0) or end (1), of what

    def enter(self, activity: str, attributes: Any = None, at: int | None = None) -> None:
        at = at or time.time_ns()
        self.noted.append((at, 0, activity))
        super().enter(activity, attributes, at)

    def leave(self, activity: str, at: int | None = None) -> None:
        at = at or time.time_ns()
        self.noted.append((at, 1, activity))
        super().leave(activity, at)

    def begin_response(self, message: Any) -> None:
        self.heads.append(message)
        self._has_trailers = bool(message.get("trailers"))

    def add_bytes(self, now: int, size: int) -> None:
        self.pieces.append((now, size))

    def end_bytes(self, now: int, size: int) -> None:  # noqa: ARG002
        self.ends.append(now)

    def add_received(self, message: Any) -> None:
        self.taken_in.append(message)

    def note_disconnect(self) -> None:
        self.gone += 1

    @property
    def events(self) -> list[tuple[int, str]]:
        return [(kind, what) for _, kind, what in self.noted]


def made() -> Passed:
    """Return a request that is not the current one."""
    return copy_context().run(Passed)


def receiving(request: Passed, receive: Any) -> Any:
    """Return the `receive` of a request, of whose body nothing was received, by that of a server."""
    request._has_body = False
    return partial(request.receive, receive)


def sending(request: Passed, send: Any) -> Any:
    """Return the `send` of a request by that of a server."""
    return partial(request.send, send)


def into(sent: list[Any]) -> Any:
    """Return a server's `send` that puts messages there."""

    async def send(message: Any) -> None:
        sent.append(message)

    return send


def run(main: Callable[[], Any]) -> Any:
    """Run a coroutine function in a task of its own context, as a server does."""
    return copy_context().run(asyncio.run, main())


@pytest.mark.parametrize("slow", [False, True])
def test_a_body_in_two_parts_and_then_the_wait_for_the_client_to_go(slow: bool) -> None:
    messages = [{"more_body": True}, {"body": b""}, {"type": "http.disconnect"}]
    left = iter(messages)

    async def receive() -> Any:
        await asyncio.sleep(0.001 if slow else 0)
        return next(left)

    async def main() -> tuple[list[Any], Passed]:
        request = made()
        passed = receiving(request, receive)
        # Some middleware gives them to a task.
        return [await passed(), await asyncio.wait_for(passed(), 10), await asyncio.create_task(passed())], request

    got, request = run(main)
    assert got == messages
    assert request.events == [(0, "network.receive"), (1, "network.receive")] * 2


@pytest.mark.parametrize(
    ("messages", "ends"),
    [
        ([HEAD, BODY], 1),
        ([HEAD, PART, PART], 0),
        ([HEAD, PART, BODY], 1),
        ([HEAD, {"type": "http.response.pathsend", "path": "/f"}], 1),
        ([HEAD, {"type": "http.response.zerocopysend", "more_body": True}, {"type": "http.response.zerocopysend"}], 1),
        ([WITH_TRAILERS, BODY], 0),
        ([WITH_TRAILERS, BODY, {**TRAILERS, "more_trailers": True}, TRAILERS], 1),
        ([HEAD, {"type": "http.response.debug"}], 0),
    ],
)
def test_an_answer_is_whole_with_its_last_byte(messages: list[Any], ends: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        sent.append((message, current.get() is not None, bool(here.get_current())))

    async def main() -> Passed:
        request = made()
        current.set(request)
        here.attach({"any": None})
        passed = sending(request, send)
        for message in messages:
            await passed(message)
            assert current.get() is request  # taken up again
            assert here.get_current()
        return request

    request = run(main)
    # As it came; all but the head outside the request's context.
    assert sent == [(message, message is messages[0], message is messages[0]) for message in messages]
    assert request.heads == messages[:1]
    assert len(request.ends) == ends
    assert request.events == [(0, "network.send"), (1, "network.send")] * len(messages)
    assert not ends or request.ends[0] == request.noted[-1][0]


@pytest.mark.parametrize("which", [0, 1], ids=["receive", "send"])
@pytest.mark.parametrize("how", ["at once", "waiting", "failing"])
def test_a_wait_of_the_servers_own_is_noted_and_only_that(which: int, how: str) -> None:
    """What a send or receive takes without waiting, nobody on the other side has taken."""

    async def pass_on(*_: Any) -> Any:
        time.sleep(0.002)  # noqa: ASYNC251 -- no wait of a task
        if how != "at once":
            await asyncio.sleep(0.002)
            await asyncio.sleep(0)
        time.sleep(0.002)  # noqa: ASYNC251 -- no wait of a task
        if how == "failing":
            raise LookupError
        return {}

    async def main() -> Passed:
        request = made()
        passed = (receiving, sending)[which](request, pass_on)
        for _ in range(2):
            with suppress(LookupError):
                await passed(*[BODY][:which])
            if how == "failing":
                break
            if not which:
                passed = (receiving, sending)[which](request, pass_on)
        return request

    request = run(main)
    if how == "at once":
        assert request.peer_waits == ()
        return
    times = [time for time, *_ in request.noted]
    stages = list(zip(times[::2], times[1::2], strict=True))
    assert request.peer_waits is not None
    assert len(request.peer_waits) == len(stages) == (1 if how == "failing" else 2)
    for (began, ended), (since, until) in zip(stages, request.peer_waits, strict=True):
        assert began + 2_000_000 <= since < until <= ended


def test_a_message_can_be_given_by_name() -> None:
    request = made()

    async def main() -> None:
        passed = sending(request, into([]))
        await passed(HEAD)
        await passed(message=BODY)

    run(main)
    assert (request.heads, len(request.ends), len(request.events)) == ([HEAD], 1, 4)


class Gone(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_the_server_raises_comes_through_as_it_is(when: str) -> None:
    """With nothing of ours but one frame at the most in its traceback; its activity has ended, the context is back."""
    error = Gone("away")

    async def fails(*_: Any) -> Any:
        if when == "later":
            await asyncio.sleep(0)
        raise error

    request = made()

    async def main() -> None:
        current.set(request)
        for call in (receiving(request, fails), lambda: sending(request, fails)(BODY)):
            with pytest.raises(Gone) as caught:
                await call()
            assert caught.value is error
            assert caught.value.__context__ is None
            error.__traceback__ = None
        assert current.get() is request

    run(main)
    events = [(n, f"network.{what}") for what in ("receive", "send") for n in (0, 1)]
    assert (request.events, request.ends) == (events, [])


def test_a_request_that_is_cancelled_while_it_waits() -> None:
    waiting: list[str] = []

    async def never(*_: Any) -> Any:
        waiting.append("in")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            waiting.append("out")
            raise

    async def main() -> Passed:
        request = made()
        for call in (receiving(request, never), lambda: sending(request, never)(BODY)):

            async def wait(call: Any = call) -> None:
                await call()

            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait(), 0.01)
        return request

    request = run(main)
    assert waiting == ["in", "out"] * 2
    assert request.events == [(n, f"network.{what}") for what in ("receive", "send") for n in (0, 1)]


def test_other_awaitables_of_a_server_are_awaited() -> None:
    """A future, an object with `__await__`; and what is no awaitable raises as it would without us."""

    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return {"body": b"later"}

    async def main() -> None:
        request = made()
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.001, future.set_result, {"more_body": True})
        assert await receiving(request, lambda: future)() == {"more_body": True}
        assert await receiving(request, Later)() == {"body": b"later"}
        gone = asyncio.get_running_loop().create_future()
        gone.set_exception(Gone())
        with pytest.raises(Gone):
            await receiving(request, lambda: gone)()
        with pytest.raises((TypeError, AttributeError)):
            await receiving(request, lambda: None)()
        assert [kind for kind, _ in request.events] == [0, 1] * 4

    run(main)


def test_a_call_may_be_closed_begun_or_not_and_is_not_awaited_twice() -> None:
    closed: list[str] = []

    async def receive() -> Any:
        try:
            await asyncio.sleep(10)
        finally:
            closed.append("closed")

    async def main() -> None:
        request = made()
        passed = receiving(request, receive)
        passed().close()
        begun = passed()
        begun.send(None)
        begun.close()
        assert closed == ["closed"]
        with pytest.raises(RuntimeError):
            await begun
        thrown = passed()
        with pytest.raises(Gone):
            thrown.throw(Gone())
        assert request.events == [(0, "network.receive"), (1, "network.receive")]

    run(main)


def test_who_wants_to_know_is_told_of_pieces_of_bodies_and_of_clients_that_go() -> None:
    """Pieces that are not the last, what a request's body is, and both ways of a server to say that they have gone."""
    gone = {"type": "http.disconnect"}
    part = {"type": "http.request", "body": b"x", "more_body": True}
    empty = {"type": "http.request", "body": b""}
    messages = [part, part, empty, empty, gone]

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    async def send(message: Any) -> None:
        if message.get("body") == b"nobody":
            raise ConnectionResetError
        if message.get("body") == b"other":
            raise ValueError

    async def main() -> Passed:
        request = made()
        receive_one, send_one = receiving(request, receive), sending(request, send)
        for _ in range(5):
            await receive_one()
        for message in (HEAD, PART, PART, BODY):
            await send_one(message)
        with pytest.raises(ConnectionResetError):
            await send_one({**BODY, "body": b"nobody"})
        with pytest.raises(ValueError):  # noqa: PT011 -- it is the server's
            await send_one({**BODY, "body": b"other"})
        return request

    request = run(main)
    assert request.taken_in == [part, part, gone]
    assert [size for _, size in request.pieces] == [1, 1]
    assert [at for at, kind, what in request.noted if (kind, what) == (1, "network.send")][1] == request.pieces[0][0]
    assert (len(request.heads), len(request.ends), request.gone) == (1, 1, 1)


@pytest.mark.parametrize("broken", ["enter", "leave", "begin_response", "end_bytes"])
def test_a_fault_of_ours_is_reported_and_the_message_passes(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(Passed, broken, fails)
    sent: list[Any] = []

    async def receive() -> Any:
        return BODY

    async def main() -> None:
        request = made()
        passed = sending(request, into(sent))
        await passed(HEAD)
        await passed(BODY)
        assert await receiving(request, receive)() == BODY

    run(main)
    assert sent == [HEAD, BODY]
    assert guard.failures.pop("stagetrace.protocols.asgi_request") in (1, 3)


def test_long_steps_of_a_requests_work_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back, comes through and is thrown in are the work's own."""
    monkeypatch.setattr(thread_cpu, "_own", threading.local())  # another test may have closed this thread's descriptor
    loop_blockers._blocked.clear()
    error, request = Gone("away"), made()

    async def work() -> int:
        time.sleep(0.006)  # noqa: ASYNC251 -- it holds the thread
        await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        time.sleep(0.006)  # noqa: ASYNC251 -- it holds the thread
        return 7

    async def fails() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        async def cancelled() -> int:
            result: int = await loop_blockers.stepped(work(), request)
            return result

        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0.05)
        task.cancel()
        assert await task == 7
        with pytest.raises(Gone) as caught:
            await loop_blockers.stepped(fails(), request)
        assert caught.value is error
        begun = loop_blockers.stepped(asyncio.sleep(1), request)
        begun.send(None)
        begun.close()

    run(main)
    long = [end - start for _, start, end, _, _ in loop_blockers._blocked]
    assert len(long) >= 2
    assert all(took >= loop_blockers.LONG_NS for took in long)
    assert request.step is None
    if thread_cpu.lacks_waiting() is None:
        divided = [thread_cpu.between(*cpu_samples) for cpu_samples in request.cpu_samples]
        # On a busy machine a thread waits for a CPU when it has slept, and steps that only did that are long, too.
        idle = [share.blocked + share.waited for share in divided if share is not None]
        assert sum(took >= 5_000_000 for took in idle) >= 2, divided


@pytest.mark.parametrize("message", [{}, {"type": 1}, {"type": None}, {"type": "http.response.body", "more_body": []}])
def test_odd_messages_pass(message: Any) -> None:
    sent: list[Any] = []
    request = made()
    run(lambda: sending(request, into(sent))(message))
    assert sent == [message]
    guard.failures.clear()


def test_calls_leave_nothing_behind() -> None:
    async def pass_on(*_: Any) -> Any:
        return BODY

    async def main() -> int:
        for _ in range(50):
            request = made()
            current.set(request)
            receive, send = receiving(request, pass_on), sending(request, pass_on)
            await receive()
            await send(HEAD)
            await send(BODY)
            request.finish()
        current.set(None)
        del request, receive, send
        return sum(issubclass(type(one), Passed) for one in gc.get_objects())  # some lazy objects fail `isinstance`

    gc.collect()  # what other tests have left
    gc.disable()
    try:
        assert run(main) == 0
    finally:
        gc.enable()


LEAKS = """
import asyncio, resource
import time
from stagetrace.protocols.asgi_request import AsgiRequest
from stagetrace.request.stage import stage
from stagetrace.request.current import current

async def pass_on(*_):
    return {"type": "http.response.body", "body": b"x"}

async def fails(*_):
    raise ValueError

async def requests(number):
    for _ in range(number):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        request = AsgiRequest(scope, None, time.time_ns(), None)
        with stage("a"), stage("b", k=1):
            await request.receive(pass_on)
        await request.send(pass_on, {"type": "http.response.start", "status": 200, "trailers": True})
        await request.send(pass_on, {"type": "http.response.body", "more_body": True})
        await request.send(pass_on, {"type": "http.response.body"})
        request._has_body = False
        try:
            await request.receive(fails)
        except ValueError:
            pass
        request.receive(pass_on).close()
        request.finish()

def rss(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

asyncio.run(requests(5_000))
before = rss()
asyncio.run(requests(30_000))
print(rss() - before)
"""


@pytest.mark.thorough
def test_nothing_leaks() -> None:
    done = run_python("-c", LEAKS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_000  # KiB; a leak of 40 bytes a request would be 1,170


def test_code_that_receives_and_sends_after_the_end_does_so() -> None:
    """Some goes on in a task of its own: what the server says to that is the server's."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def main() -> Any:
        request = made()
        passed = receiving(request, receive), sending(request, into(sent))
        await passed[1](HEAD)
        await passed[1](BODY)
        request.finish()
        await passed[1](BODY)
        return await passed[0]()

    assert run(main) == {"type": "http.disconnect"}
    assert sent == [HEAD, BODY, BODY]
