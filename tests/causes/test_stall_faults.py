"""A fault within the sampler costs the sample of one request, is logged once, and at the tenth switches it off."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import Policy, guard, log
from stagetrace.causes import stall_sampler as module
from stagetrace.causes.baseline import Baselines
from stagetrace.causes.stall_sampler import Budget, StallSampler
from stagetrace.request import in_flight as timer
from stagetrace.request.in_flight import NEVER, in_flight
from stagetrace.request.request import Request
from stagetrace.sources import stacks
from stagetrace.sources.registry import FAILED, silent, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AGO = 10**9  # nanoseconds: requests began so long ago, and are late


class Failing(Request):
    """One that cannot say what was asked for."""

    protocol = "test"

    def method_and_route(self) -> tuple[str | None, str]:
        raise ValueError("injected fault")


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"injected fault: {name}")


class LikeCoroutine:
    """Raises where it stands, as the coroutine of an extension may."""

    @property
    def cr_frame(self) -> Any:
        raise RuntimeError("injected fault")


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(guard, "failures", {})
    log._logged.clear()
    monkeypatch.setattr(stacks.SOURCE._switch, "off", False)
    in_flight.stop()
    yield
    log._logged.clear()
    in_flight.stop()


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> StallSampler:
    """Return a sampler without a thread: the test looks itself."""
    monkeypatch.setattr(module, "start", lambda *_: None)
    # The traceback of the first fault may take longer than a look should.
    monkeypatch.setattr(Budget, "is_left", lambda _: True)
    made = StallSampler()
    made.add(Policy.parse("* within 1ms"), Baselines())
    return made


@contextmanager
def waiting(work: Any = None, kind: type[Request] = Request) -> Iterator[Request]:
    """Have a late request wait in a thread of its own."""
    made: list[Request] = []
    begun, go = threading.Event(), threading.Event()

    def handler() -> None:
        record = kind(start=time.time_ns() - AGO)
        record.work = work
        made.append(record)
        begun.set()
        go.wait(60)

    thread = threading.Thread(target=handler)
    thread.start()
    try:
        assert begun.wait(60)
        yield made[0]
    finally:
        go.set()
        thread.join()


def failures() -> dict[str, int]:
    return dict(guard.failures)


def test_a_request_that_cannot_be_judged_costs_the_others_nothing(sampler: StallSampler) -> None:
    with waiting(kind=Failing) as bad, waiting() as good:
        sampler.look(time.time_ns())
    assert (len(bad.stalls), len(good.stalls)) == (0, 1)
    assert failures() == {stacks.__name__: 1}


@pytest.mark.parametrize("kind", [Hostile, LikeCoroutine, object, int, list])
def test_what_looks_like_a_coroutine_and_is_none_is_harmless(sampler: StallSampler, kind: type) -> None:
    with waiting(work=kind()) as bad, waiting() as good:
        sampler.look(time.time_ns())
    assert len(good.stalls) == 1
    assert len(bad.stalls) <= 1
    assert failures() == ({stacks.__name__: 1} if kind is LikeCoroutine else {})


def test_a_policy_that_fails_is_logged_once_and_switches_the_sampler_off(
    sampler: StallSampler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Policy, "candidates", fails)
    for number in range(guard.LIMIT + 2):
        assert stacks.SOURCE.is_used is (number < guard.LIMIT)
        with waiting():
            sampler.look(time.time_ns())
    log = capfd.readouterr().err
    assert log.count("injected fault") == 1
    assert log.count("switched off in this process") == 1
    with waiting() as record:
        assert record.stalls == ()
    assert silent()[stacks.SOURCE.title] == FAILED


def test_each_of_two_policies_has_its_requests_sampled_until_it_is_removed(sampler: StallSampler) -> None:
    """As of two span processors, one of which is shut down."""
    learned = Baselines()
    sampler.add(Policy.parse("* within 60m"), learned)
    for _ in range(2):
        with waiting() as record:
            sampler.look(time.time_ns())
        assert len(record.stalls) == 1
        sampler.remove(learned)
    sampler.remove(sampler._judges[0].learned)
    with waiting() as record:
        assert (in_flight.is_watched, in_flight.requests) == (False, set())


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("injected fault")


@pytest.mark.parametrize("part", ["begin", "end", "set_timer"])
def test_a_request_is_recorded_and_ends_where_it_cannot_be_kept(
    part: str, sampler: StallSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_flight, part, fails)
    record = Request()
    record.enter("queue")
    assert [one.stage for one in record.so_far()][-1] == "queue"
    try:
        record.abandon()
    except RuntimeError:
        assert part == "end"  # who abandons a request is guarded
    assert record.closed
    assert record.stalls == ()
    assert sampler is not None


def recurse(depth: int, then: Callable[[], None]) -> None:
    recurse(depth - 1, then) if depth else then()


def test_a_deep_recursion_is_walked_to_a_bound_and_its_innermost_frames_are_kept(sampler: StallSampler) -> None:
    begun, go = threading.Event(), threading.Event()
    made: list[Request] = []

    def handler() -> None:
        made.append(Request(start=time.time_ns() - AGO))
        recurse(10_000, wait)

    def wait() -> None:
        begun.set()
        go.wait(60)

    before, size = sys.getrecursionlimit(), threading.stack_size(512 * 2**20)
    sys.setrecursionlimit(30_000)
    try:
        thread = threading.Thread(target=handler)
        thread.start()
        assert begun.wait(60)
        sampler.look(time.time_ns())
        go.set()
        thread.join()
    finally:
        sys.setrecursionlimit(before)
        threading.stack_size(size)
    (stall,) = made[0].stalls
    assert len(stall.stack) == stacks.MAX_KEPT
    assert {code.co_name for code, _ in stall.stack[-10:]} == {"recurse"}
    assert failures() == {}


def test_a_request_that_has_ended_is_not_sampled(sampler: StallSampler) -> None:
    with waiting() as ended:
        sampler.look(time.time_ns())
        ended.abandon()
        sampler.look(time.time_ns() + AGO)
    assert ended.stalls == ()
    assert (len(in_flight.requests), in_flight.due, failures()) == (0, NEVER, {})


@pytest.fixture
def running() -> Iterator[StallSampler]:
    """Return a sampler whose thread runs, once there is a request."""
    made = StallSampler()
    made.add(Policy.parse("* within 1ms"), Baselines())
    yield made
    in_flight.stop()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sampled() -> None:
    """Check that a late request is sampled."""
    with waiting() as record:
        until(lambda: bool(record.stalls))


@pytest.mark.usefixtures("running")
def test_the_thread_goes_on_where_neither_a_look_nor_the_next_one_can_be_done(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = in_flight.set_timer

    def fails_there(now: int) -> None:
        if threading.current_thread().name == "stagetrace-stalls":
            fails()
        original(now)

    sampled()
    with monkeypatch.context() as broken:
        broken.setattr(in_flight, "set_timer", fails_there)
        with waiting():
            until(lambda: stacks.__name__ in failures())
    sampled()
    assert "Traceback" not in capfd.readouterr().err


class Ends:
    """Ends the thread that asks it."""

    @property
    def cr_frame(self) -> Any:
        raise SystemExit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.usefixtures("running")
def test_a_thread_that_was_ended_has_a_successor() -> None:
    sampled()
    first = in_flight.timer
    ended = next(thread for thread in threading.enumerate() if thread.name == "stagetrace-stalls")
    with waiting(work=Ends()):
        until(lambda: in_flight.timer is not first)
    ended.join(60)  # its warning is ignored in this test alone
    sampled()


@pytest.mark.usefixtures("running")
def test_a_timer_that_fails_is_made_anew_and_at_the_tenth_time_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (timer.KernelTimer, timer.PythonTimer):
        monkeypatch.setattr(kind, "wait", fails)
    for _ in range(guard.LIMIT):
        with waiting():
            until(lambda: in_flight.timer is None)
    until(lambda: not in_flight.is_watched)
    assert failures() == {stacks.__name__: guard.LIMIT}
    with waiting():
        assert (in_flight.requests, in_flight.timer) == (set(), None)


@pytest.mark.usefixtures("running")
def test_where_no_thread_can_be_started_requests_go_on_and_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "start", fails)
    monkeypatch.setattr(stacks.SOURCE, "silent", None)
    with waiting(), waiting():
        assert (in_flight.requests, in_flight.timer, in_flight.is_watched) == (set(), None, False)
    reason = "no thread could be started: injected fault"
    assert silent()[stacks.SOURCE.title] == states()[stacks.SOURCE.title] == reason
    assert sum(failures().values()) == 1
