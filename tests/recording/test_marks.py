"""What is noted of a request and marked by hand, in C and in Python."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from missing import unused
from stagetrace import guard
from stagetrace.request import current as current_module
from stagetrace.request import marks, stage
from stagetrace.request.current import current
from stagetrace.semconv import STAGETRACE_DROPPED_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator

pytestmark = pytest.mark.native


@pytest.fixture(params=["C", "Python"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return names of marks.py and stage.py as one implementation has them; what that reports fails the test."""
    if request.param == "C" and marks.Marks is marks._Marks:
        unused()
    if request.param == "Python":
        for name in ("Mark", "Marks"):
            monkeypatch.setattr(marks, name, getattr(marks, f"_{name}"))
        monkeypatch.setattr(stage, "Mark", marks.Mark)
        monkeypatch.setattr(stage, "stage", stage._stage)
    guard.failures.clear()
    token = current.set(None)
    yield SimpleNamespace(Mark=marks.Mark, Marks=marks.Marks, stage=stage.stage)
    current.reset(token)
    assert not guard.failures


def bound(twin: Any, **more: Any) -> Any:
    """Return a record whose clock is a microsecond later at each look: each mark looks once."""

    class Request(twin.Marks):  # type: ignore[misc]
        looks = 0

    request = Request()

    def look() -> int:
        request.looks += 1
        return int(request.looks) * 1_000

    for name, value in {"clock": look, "bound": True, **more}.items():
        setattr(request, name, value)
    return request


def explicit(request: Any) -> list[Any]:
    """Return what was marked by hand until now."""
    return [(one.stage, dict(one.attributes)) for one in request.so_far() if one.explicit]


def test_what_is_noted_counts_at_its_time(twin: Any) -> None:
    request = bound(twin)
    mark = twin.Mark("m", {"a": 1})
    request.enter("queue")
    request.enter("inference", {"b": 2}, None)
    request.leave("inference", 0)  # as no time
    request.leave("queue", at=70_000)
    request.enter("queue", at=80_000)
    request.begin_mark(mark, at=90_000)
    request.end_mark(mark, 95_000)
    request.leave("queue", 99_000)
    assert [(one.stage, one.start, dict(one.attributes)) for one in request.so_far()] == [
        *(("preprocess", 0, {}), ("queue", 1_000, {}), ("inference", 2_000, {"b": 2}), ("queue", 3_000, {})),
        *(("", 70_000, {}), ("queue", 80_000, {}), ("m", 90_000, {"a": 1}), ("queue", 95_000, {}), ("", 99_000, {})),
    ]
    request.closed = True
    request.enter("queue")
    request.leave("queue")
    request.begin_mark(mark)
    request.end_mark(mark)
    assert request.looks == 3
    assert len(request.so_far()) == 9
    assert (mark.stage, mark.attributes, twin.Mark("n").attributes) == ("m", {"a": 1}, None)
    assert (mark.context, mark.link, twin.Mark("n", None, 1, 2).link) == (None, None, 2)


def test_the_wall_clock(twin: Any) -> None:
    request = bound(twin, clock=None)
    before = request.started = time.time_ns()
    request.enter("queue")
    assert before <= request.so_far()[-1].start <= time.time_ns()


def test_marks_after_the_end_of_a_record_do_nothing(twin: Any) -> None:
    request = bound(twin)
    for _ in range(2_000):  # more than are kept one by one
        request.enter("queue")
        request.leave("queue")
    stages = request.tile(0, 4_000_000)
    request.enter("inference")
    assert stages.totals() == {"handler": 2_000_000, "queue": 2_000_000}
    assert request.looks == 4_001
    dropped = bound(twin)
    dropped.enter("queue")
    dropped.drop()
    dropped.leave("queue")
    assert (dropped.closed, dropped.tile(0, 10).totals()) == (True, {"handler": 10})


def test_a_clock_that_fails_is_the_callers(twin: Any) -> None:
    request = bound(twin, clock=lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        request.enter("queue")
    assert [one.stage for one in request.so_far()] == [""]


def test_a_stage_by_hand(twin: Any) -> None:
    request = bound(twin)
    current.set(request)
    with twin.stage("outer", k="v", n=1, odd=[1]), twin.stage(name="x" * 70) as nothing:
        assert nothing is None
    with pytest.raises(ValueError, match="the app's"), twin.stage(""):
        raise ValueError("the app's")
    assert explicit(request) == [
        ("outer", {"k": "v", "n": 1, "odd": "[1]"}),
        ("x" * 64, {}),
        ("outer", {}),
        ("stage", {}),
    ]
    assert (request.looks, request.so_far()[-1].stage) == (6, "")


def test_one_object_for_many_blocks(twin: Any) -> None:
    stage = twin.stage("again")
    for _ in range(2):
        request = bound(twin)
        current.set(request)
        with stage:
            pass
        assert (explicit(request), request.so_far()[-1].stage) == ([("again", {})], "")


def test_outside_a_request_it_does_nothing(twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for request in (None, bound(twin, closed=True), bound(twin, bound=False)):
        current.set(request)
        with twin.stage("a", k=1):
            pass
        assert request is None or request.looks == 0
    other = bound(twin)
    monkeypatch.setattr(current_module, "_of_span", lambda: other)
    current.set(None)
    monkeypatch.setitem(current_module.entries, 1, other)
    with twin.stage("found by its span"):
        pass
    assert explicit(other) == [("found by its span", {})]


class Odd:
    def __str__(self) -> str:
        raise ValueError("no text")


def test_what_has_no_text_is_left_out_or_reported_and_the_block_runs(twin: Any) -> None:
    request = bound(twin)
    current.set(request)
    with twin.stage("a", odd=Odd(), k=1):
        pass
    assert explicit(request) == [("a", {"k": 1, STAGETRACE_DROPPED_ATTRIBUTES: 1})]
    ran = []
    with twin.stage(Odd()):
        ran.append(1)
    assert ran == [1]
    assert request.looks == 2
    assert sum(guard.failures.values()) == 1
    guard.failures.clear()


def test_model_and_version_by_their_names_on_spans(twin: Any) -> None:
    request = bound(twin)
    current.set(request)
    with twin.stage("inference", model="m", version=3, rows=2), twin.stage("inference", model=None, none=None):
        pass
    assert [attributes for _, attributes in explicit(request)] == [
        {"ml.model.name": "m", "ml.model.version": "3", "rows": 2, "none": "None"},
    ]


F = TypeVar("F", bound="Callable[..., Any]")


def as_stage(twin: Any) -> Callable[[F], F]:
    return twin.stage("inference", model="m")  # type: ignore[no-any-return]


def noted(request: Any) -> int:
    """Return how many begins and ends were noted since the last time; all are of one stage, and none is open."""
    known = {"ml.model.name": "m"}
    assert all(one == ("inference", known) for one in explicit(request))
    assert request.so_far()[-1].stage == ""
    count, request.seen = request.looks - getattr(request, "seen", 0), request.looks
    return int(count)


def test_a_function_each_of_whose_calls_is_a_stage(twin: Any) -> None:
    request = bound(twin)
    current.set(request)

    @as_stage(twin)
    def fibonacci(number: int, *, least: int = 1) -> int:
        """Do it."""
        if number < 0:
            raise ValueError(number)
        return least if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

    assert fibonacci(1, least=7) == 7
    assert noted(request) == 2
    assert fibonacci(2) == 2
    assert noted(request) == 6  # within themselves: each call has a mark of its own
    with pytest.raises(ValueError, match="-1") as raised:
        fibonacci(-1)
    assert noted(request) == 2
    assert raised.value.__context__ is None
    assert (fibonacci.__name__, fibonacci.__doc__, fibonacci.__module__) == ("fibonacci", "Do it.", __name__)
    assert str(inspect.signature(fibonacci)) == "(number: 'int', *, least: 'int' = 1) -> 'int'"
    current.set(None)
    assert fibonacci(2) == 2
    assert noted(request) == 0


def test_a_method_and_what_is_called_like_a_function(twin: Any) -> None:
    request = bound(twin)
    current.set(request)

    class Model:
        @as_stage(twin)
        def score(self, row: int) -> int:
            return row + 1

        @staticmethod
        @as_stage(twin)
        def load(row: int) -> int:
            return row + 2

    assert (Model().score(1), Model.load(1)) == (2, 3)
    assert twin.stage("inference", model="m")(functools.partial(Model.load, 2))() == 4
    assert noted(request) == 8


def test_a_coroutine_function_is_the_stage_until_it_returns(twin: Any) -> None:
    request = bound(twin)
    current.set(request)

    @as_stage(twin)
    async def score(row: int) -> int:
        await asyncio.sleep(0)
        assert request.so_far()[-1].stage == "inference"  # while it runs
        if row < 0:
            raise ValueError(row)
        return row

    assert inspect.iscoroutinefunction(score)

    async def main() -> None:
        assert await score(1) == 1
        with pytest.raises(ValueError, match="-1"):
            await score(-1)

    asyncio.run(main())
    assert noted(request) == 4


def test_each_step_of_a_generator_is_the_stage(twin: Any) -> None:
    """What its caller does with an item is not; what is sent, thrown and returned goes through."""
    request = bound(twin)
    current.set(request)
    closed = []

    @as_stage(twin)
    def tokens(count: int) -> Generator[int, str, str]:
        said = ""
        try:
            for number in range(count):
                with contextlib.suppress(KeyError):
                    said += str((yield number))
        finally:
            closed.append(count)
        return said

    assert inspect.isgeneratorfunction(tokens)
    made = tokens(3)
    assert noted(request) == 0
    assert next(made) == 0
    assert noted(request) == 2
    assert made.send("x") == 1
    assert made.throw(KeyError()) == 2
    with pytest.raises(StopIteration) as end:
        made.send("y")
    assert end.value.value == "xy"
    assert noted(request) == 6
    assert closed == [3]
    incomplete_reason = tokens(2)
    next(incomplete_reason)
    incomplete_reason.close()
    assert closed == [3, 2]
    with pytest.raises(ZeroDivisionError):
        tokens(1).throw(ZeroDivisionError())
    assert list(tokens(0)) == []


def test_each_step_of_an_asynchronous_generator_is_the_stage(twin: Any) -> None:
    request = bound(twin)
    current.set(request)
    closed = []

    @as_stage(twin)
    async def tokens(count: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(count):
                await asyncio.sleep(0)
                with contextlib.suppress(KeyError):
                    yield number
        finally:
            await asyncio.sleep(0)
            closed.append(count)

    assert inspect.isasyncgenfunction(tokens)

    async def main() -> None:
        assert [number async for number in tokens(2)] == [0, 1]
        assert noted(request) == 6  # the last one finds that there is no more
        made = tokens(3)
        assert await made.asend(None) == 0
        assert await made.athrow(KeyError()) == 1
        await made.aclose()
        assert closed == [2, 3]
        with pytest.raises(ZeroDivisionError):
            await tokens(1).athrow(ZeroDivisionError())

    asyncio.run(main())


WRONG: list[Any] = [type("Model", (), {}), 3, None, staticmethod(len), classmethod(print), property(len)]


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_function_is_refused_where_it_is_written(twin: Any, what: Any) -> None:
    with pytest.raises(TypeError, match=r"@stagetrace\.stage"):
        twin.stage("inference")(what)


def test_a_decorator_without_a_name_is_refused_where_it_is_written(twin: Any) -> None:
    with pytest.raises(TypeError, match=r'@stagetrace.stage\("inference"\)'):
        twin.stage(len)


@pytest.mark.parametrize("arguments", [(), ("a", "b")])
def test_a_decorator_takes_one_function(twin: Any, arguments: Any) -> None:
    with pytest.raises(TypeError):
        twin.stage("inference")(*arguments)
    with pytest.raises(TypeError):
        twin.stage("inference")(len, model="m")


@pytest.mark.parametrize("arguments", [(), ("a", "b")])
def test_it_takes_one_name(twin: Any, arguments: Any) -> None:
    with pytest.raises(TypeError):
        twin.stage(*arguments)


@pytest.mark.parametrize("kind", ["work", "batch"])
def test_a_block_within_what_is_done_for_other_processes_is_theirs(kind: str) -> None:
    """Of a worker of LitServe or MLServer: by whichever implementation is in use."""
    from stagetrace.request.remote_stages import RequestRef
    from stagetrace.request.worker import Batch, Work, at_work
    from stagetrace.tracing.span_context import SpanContext

    request = RequestRef("none-1-0", SpanContext(1, 1, is_remote=True))
    work = Work(request) if kind == "work" else Batch([request], 1)
    with at_work(work), stage.stage("tokenize"):
        pass
    assert explicit(work) == [("tokenize", {})]
    assert work.so_far()[-1].stage == ""


def test_what_a_thread_computes_in_a_longer_block_is_noted(twin: Any) -> None:
    request = bound(twin, clock=None)
    current.set(request)
    before = time.time_ns()
    with twin.stage("sleeps"):
        time.sleep(0.05)
    time.sleep(0.001)  # just after a reading the clock of the CPU is estimated, to within some microseconds
    with twin.stage("computes"):
        until = time.thread_time_ns() + 10_000_000
        while time.thread_time_ns() < until:
            pass
    slept, computed = request.computed
    assert before <= slept[0] < slept[1] <= computed[0] < computed[1] <= time.time_ns()
    assert slept[1] - slept[0] >= 50_000_000
    assert slept[2] <= slept[1] - slept[0] - 49_000_000
    assert computed[2] >= 10_000_000
    assert slept[3] == computed[3] == threading.get_native_id()
